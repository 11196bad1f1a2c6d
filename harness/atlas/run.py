"""Families judged: variants made, in both spellings of config.json, and a verdict on each."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import EngineError, one_line

from .. import environment
from ..environment import version
from ..errors import BadOption, ReferenceUnavailable
from ..executors import Bounds, Executor, Task
from ..judge import compare
from ..random_models import write_model
from ..sweep import Progress, sweep
from ..types import ERROR, FAIL, Verdict
from . import spelling
from .families import Family, chosen
from .names import rename
from .recipes import recipe_of
from .rows import CANNOT_LOAD, NEW, OLD, Row, rows_of
from .tiny import CannotBuild, parameters, tiny_configs, written
from .variants import PLAIN
from .waivers import read_waivers
from .whole import Atlas

PACKAGES = ("mlx", "mlx-lm", "torch", "transformers")
ONCE = (PLAIN,)  # variants that are judged in the new spelling where there is an old one


def plan(families: Sequence[Family], candidate: str, keep: Path | None = None) -> list[Task]:
    """A task for every family that is attempted; versions and its recipe are part of it, so that
    results of other ones are not taken for these."""
    versions = {name: version(name) for name in PACKAGES}
    common = {"candidate": candidate, "versions": versions, "keep": str(keep) if keep else None}
    return [
        {"family": f.name, "recipe": recipe_of(f.name).digest, **common}
        for f in families
        if f.left_out is None
    ]


def make(
    candidate: str,
    names: list[str] | None = None,
    *,
    jobs: int = 1,
    memory: float,
    seconds: float,
    executor: Executor | None = None,
    resume: Path | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> Atlas:
    """The atlas of a candidate: all families, or those named.

    `memory` (GB) and `seconds` are what one family may take. Raises BadOption.
    """
    if not (memory > 0 and seconds > 0):
        raise BadOption(f"--memory {memory:g} --seconds {seconds:g}: both must be more than 0")
    found, waivers = chosen(candidate, names), read_waivers(candidate)
    bounds = Bounds(seconds, int(memory * 1e9), stopped)
    results = sweep(
        judge_family, plan(found, candidate, keep),
        jobs=jobs, executor=executor, resume=resume, progress=progress, bounds=bounds,
    )  # fmt: skip
    rows = rows_of([result for _, result in results])
    return Atlas(candidate, found, rows, waivers, environment.describe())


def judge_family(task: Task) -> list[dict[str, Any]]:
    """The rows of one family. With `keep` the models stay below that folder."""
    with tempfile.TemporaryDirectory(prefix="mlx-parity-") as temporary:
        folder = Path(task["keep"] or temporary) / task["family"]
        return [row.document() for row in _rows(task["family"], task["candidate"], folder)]


def stopped(task: Task, why: str) -> list[dict[str, Any]]:
    """The rows of a family that took too much."""
    return [Row(task["family"], "all", NEW, ERROR, reason=f"stopped: {why}").document()]


def _rows(family: str, candidate: str, folder: Path) -> Iterator[Row]:
    try:
        for variant, config in tiny_configs(family):
            yield from _judged_in_both(family, variant, config, candidate, folder)
    except CannotBuild as error:
        yield Row(family, "all", NEW, ERROR, reason=f"no tiny model: {error}")


def _judged_in_both(
    family: str, variant: str, config: Any, candidate: str, folder: Path
) -> Iterator[Row]:
    count = sum(math.prod(shape) for shape in parameters(config).values())
    files = {NEW: written(config)}
    recipe = recipe_of(family)
    older = spelling.old(files[NEW], recipe)
    if older is not None and spelling.same_meaning(files[NEW], older):
        files[OLD] = older
        if variant not in ONCE:
            del files[NEW]
    for how, document in files.items():
        begin = time.perf_counter()
        place = folder / f"{variant}-{how}"
        place.mkdir(parents=True, exist_ok=True)
        known: dict[str, Any] = {"parameters": count}
        try:
            write_model(place, document)
            if how == OLD and recipe.renamed:
                rename(place, recipe)
        except Exception as error:  # of transformers' code, for a configuration of ours
            reason = f"transformers makes no model: {type(error).__name__}: {one_line(error)}"
            yield Row(family, variant, how, ERROR, reason=reason, **known)
            continue
        row = _judged(place, candidate)
        seconds = round(time.perf_counter() - begin, 2)
        yield Row(family, variant, how, seconds=seconds, **known, **row)


def _judged(place: Path, candidate: str) -> dict[str, Any]:
    """The verdict on one model, as the fields of a row."""
    try:
        return _told(compare(place, candidate, "torch"))
    except ReferenceUnavailable as error:
        return {"outcome": ERROR, "reason": _without(place, error)}
    except EngineError as error:
        return {"outcome": CANNOT_LOAD, "reason": _without(place, error)}
    except Exception as error:  # a defect of the harness
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        reason = f"{type(error).__name__} in {where}: {one_line(error)}"
        return {"outcome": ERROR, "reason": _without(place, reason)}


def _told(verdict: Verdict) -> dict[str, Any]:
    first = verdict.first_divergence
    found: dict[str, Any] = {"outcome": verdict.verdict, "diagnosis": verdict.diagnosis}
    if verdict.verdict == FAIL and first is not None:
        found |= {
            "check": first.check,
            "site": first.site,
            "ratio": first.ratio if first.ratio and first.ratio < float("inf") else None,
            "code": first.code,
            "reason": first.message,
        }
    elif verdict.diagnosis is None:
        open_ones = [c for c in verdict.checks if c.verdict == verdict.verdict and c.reason]
        found["reason"] = open_ones[0].reason if verdict.verdict != "pass" and open_ones else None
    return found


def _without(place: Path, error: object) -> str:
    """An error without the path of a folder that is gone by the time it is read."""
    text = str(error).replace(f"{place}/", "")
    return text.replace(f" {place}", "").replace(str(place), "the model")
