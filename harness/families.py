"""What the engine runs, and how it is known: every variant of every family, judged against torch.

Families and variants are found by scanning engine/architectures. Nothing here knows one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.architectures import architecture, supported
from engine.config import Config

from .errors import BadOption
from .executors import Executor
from .random_models import config_of, variants, write_model
from .sweep import Progress, Task, sweep
from .types import PASS

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Family:
    """One family: what its file says of it, its verdicts, and the settings that it refuses.

    `verdicts[variant][dtype]` is pass, fail, error or inconclusive; `nearest` is how much of its
    limit the worst site takes up; `gaps` are keys of config.json with the values that are allowed.
    """

    name: str
    about: str
    verdicts: dict[str, dict[str, str]]
    nearest: float
    gaps: dict[str, tuple[Any, ...]]

    @property
    def passes(self) -> bool:
        return all(verdict == PASS for of in self.verdicts.values() for verdict in of.values())


def judge_families(
    names: Collection[str] | None = None,
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    resume: Path | None = None,
    progress: Progress | None = None,
) -> list[Family]:
    """Judge all variants of some families; None takes all. Raises BadOption for an unknown one."""
    known = supported()
    for name in names or ():
        if name not in known:
            raise BadOption(f"--families {name!r}: the engine has {', '.join(known)}")
    tasks: list[Task] = [
        {"model": f"{family}/{variant}"}
        for family, variant in variants()
        if names is None or family in names
    ]
    found: dict[str, dict[str, Any]] = {}
    results = sweep(judged, tasks, jobs=jobs, executor=executor, resume=resume, progress=progress)
    for task, result in results:
        family, variant = task["model"].split("/")
        found.setdefault(family, {})[variant] = result
    return [_family(name, found[name]) for name in known if name in found]


def judged(task: Task) -> dict[str, Any]:
    """The verdict of engine against torch on one random model."""
    from .judge import compare

    config = config_of(*task["model"].split("/"))
    with tempfile.TemporaryDirectory(prefix="mlx-parity-") as folder:
        model = write_model(Path(folder), config)
        verdict = compare(model, "engine", "torch", DTYPES[-1])  # float32 is always asked
    rungs = {d: [check for check in verdict.checks if check.dtype == d] for d in DTYPES}
    verdicts = {dtype: replace(verdict, checks=checks).verdict for dtype, checks in rungs.items()}
    nearest = max(diff.ratio / diff.limit for diff in verdict.sites if diff.judged)
    return {"verdicts": verdicts, "nearest": nearest}


def _family(name: str, found: dict[str, dict[str, Any]]) -> Family:
    file = architecture(name)
    gaps: dict[str, tuple[Any, ...]] = {}
    for variant in found:
        config = Config(config_of(name, variant))
        file.spec(config)
        gaps |= config.refused
    return Family(
        name=name,
        about=(file.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        verdicts={variant: result["verdicts"] for variant, result in sorted(found.items())},
        nearest=max(result["nearest"] for result in found.values()),
        gaps=dict(sorted(gaps.items())),
    )
