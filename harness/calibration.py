"""How far apart are right implementations here? Harmless candidates, scored like any other.

Random models of every family are compared with candidates that are right by construction: PyTorch
with its sums in another order, on other threads, with fused attention; and our engine, which is
what says how MLX rounds on this device. For every measure, dtype and kind of probe the scatter
between prompts and the limit that all of them pass become a row of the table. Source: METHOD.md,
"Limits"; Wilks 1941.
"""

from __future__ import annotations

import datetime
import math
import shlex
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

from engine.errors import EngineError
from engine.files import find_model
from engine.runtime import use_device

from . import environment
from .backends import Request
from .backends import load_backend as load_side
from .checks import all_checks
from .comparison import MODULE, Comparison
from .errors import BadOption
from .executors import Executor
from .limits import Limits, Row, find_limits, own_folder, write_limits
from .policy import LEAST, upper_bound
from .random_models import config_of, variants, write_model
from .sweep import Progress, Task, sweep
from .types import Verdict

ON_CPU = ("engine", "torch:sdpa", "torch:reordered", "torch:threaded")
ON_GPU = ("engine",)
DTYPES = ("float32", "bfloat16", "float16")
EXACT = ("environment", "weights", "tokens", "repeat")  # these measure no ratio

ENOUGH = 59  # runs whose largest score bounds 95 % of all, at 95 % confidence
LEAST_SCATTER = 0.01

# A limit is this many times the largest benign score: room for what no candidate here does (other
# orders of casts, other widths, other versions). docs/METHOD.md shows what it leaves to find.
HEADROOM = 2.0

# No harmless candidate is this far off: something is wrong, and must not become a limit.
CEILING = 16.0


class NotHarmless(EngineError):
    """A candidate that was taken to be right is not, so that no limit can be measured."""


def calibrate(
    seeds: int,
    *,
    least: int = ENOUGH,
    device: str | None = None,
    jobs: int = 1,
    executor: Executor | None = None,
    out: Path | None = None,
    resume: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Measure and write the table of this device class; return its path.

    `seeds` random models are made of every variant, and more of those that a row with fewer than
    `least` runs comes from. Raises NotHarmless where a candidate is beyond CEILING.
    """
    if seeds < 1:
        raise BadOption(f"--seeds {seeds}: at least 1")
    used = use_device(device)
    runs: list[dict[str, Any]] = []
    done: dict[str, int] = defaultdict(int)  # model -> seeds
    more = {f"{family}/{variant}": seeds for family, variant in variants()}
    while more:
        tasks: list[Task] = [
            {"model": model, "seed": done[model] + i, "device": device}
            for model, count in more.items()
            for i in range(count)
        ]
        found = sweep(scored, tasks, jobs=jobs, executor=executor, resume=resume, progress=progress)
        runs += [run for _, results in found for run in results]
        for model, count in more.items():
            done[model] += count
        more = _more(runs, least, done)
    limits = table(runs, environment.device_class(used))
    path = out or own_folder() / f"{limits.device_class}.json"
    described = environment.describe()
    provenance = {
        "command": shlex.join(["harness", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "platform": described["platform"],
        "device": described["device"],
        "packages": described["packages"],
        "headroom": HEADROOM,
        "benign_runs": len(runs),
        "candidates": sorted({run["candidate"] for run in runs}),
    }
    write_limits(path, limits, provenance)
    return path


def _more(runs: Sequence[dict[str, Any]], least: int, done: Mapping[str, int]) -> dict[str, int]:
    """How many more seeds of which models give every row `least` runs, `done` seeds so far."""
    rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)  # the models of its runs
    for run in runs:
        for measure, kind in {(measure, kind) for measure, kind, *_ in run["groups"]}:
            rows[measure, run["dtype"], kind].append(run["model"])
    more: dict[str, int] = {}
    for models in rows.values():
        a_seed = sum(models.count(model) / done[model] for model in set(models))
        missing = math.ceil((least - len(models)) / a_seed)
        if missing > 0:
            more |= {model: max(missing, more.get(model, 0)) for model in set(models)}
    return dict(sorted(more.items()))


def scored(task: Task) -> list[dict[str, Any]]:
    """Compare one random model with every harmless candidate at every dtype."""
    from .judge import ask
    from .reference import Remembered
    from .sides import load_reference

    used = use_device(task["device"])
    questions = {name: check for name, check in all_checks().items() if name not in EXACT}
    results = []
    with tempfile.TemporaryDirectory(prefix="mlx-parity-") as folder:
        config = config_of(*task["model"].split("/"))
        files = find_model(write_model(Path(folder), config, seed=task["seed"]))
        for dtype in DTYPES:
            request = Request(files, dtype)
            reference = Remembered(load_reference("torch", request))
            for name in ON_CPU if used == "cpu" else ON_GPU:
                if name == "torch:sdpa" and config.get("attn_logit_softcapping"):
                    continue  # fused attention leaves the cap out: that is no harmless change
                side = Request(files, dtype, task["device"] if name == "engine" else None)
                candidate = load_side(name, side)
                limits = find_limits(environment.device_class(candidate.device))
                comparison = Comparison(files, reference, candidate, reference.probes, limits)
                verdict = Verdict("", name, "torch", dtype, "")
                ask(comparison, questions, verdict)
                results.append(_run(task, name, dtype, comparison, verdict))
    return results


def _run(
    task: Task, candidate: str, dtype: str, comparison: Comparison, verdict: Verdict
) -> dict[str, Any]:
    groups = [
        [d.measure, d.kind, d.tests, [_plain(r) for r in d.ratios]] for d in verdict.decisions
    ]
    blocks = sorted({d.site.block for d in verdict.sites if d.site.block is not None})
    block = blocks[task["seed"] % len(blocks)]
    for probe in {p.kind: p for p in comparison.probes}.values():
        ratios = [[_plain(d.ratio)] for d in comparison.modules(probe, block)]
        groups += [[MODULE, probe.kind, len(ratios), ratio] for ratio in ratios]
    engaged = next(c for c in verdict.checks if c.name == "engagement").measures
    names = {"candidate": candidate, "dtype": dtype, "model": task["model"]}
    return {**names, "groups": groups, "mean_ratio": engaged.get("mean_ratio")}


def table(runs: Sequence[dict[str, Any]], device_class: str) -> Limits:
    """Rows from runs: the limit is the largest score of any run, over all sites of the row."""
    by_row: dict[tuple[str, str, str], list[list[tuple[int, list[float]]]]] = defaultdict(list)
    for run in runs:
        mine: dict[tuple[str, str, str], list[tuple[int, list[float]]]] = defaultdict(list)
        for measure, kind, tests, ratios in run["groups"]:
            wild = next((ratio for ratio in ratios if not ratio <= CEILING), None)
            if wild is not None:
                raise NotHarmless(
                    f"{run['candidate']} on {run['model']} at {run['dtype']} is {wild:.3g} times "
                    f"the noise ({measure}, {kind!r} probes): no limit can be measured with it"
                )
            mine[measure, run["dtype"], kind].append((tests, ratios))
        for key, groups in mine.items():
            by_row[key].append(groups)
    rows = {}
    for key, of_runs in by_row.items():
        # A module's ratio is looked at as it is, so that no scatter may widen its limit.
        scatter = _scatter(of_runs) if key[0] != MODULE else LEAST_SCATTER
        scores = [
            max(upper_bound(ratios, scatter, tests) for tests, ratios in groups)
            for groups in of_runs
        ]
        rows[key] = Row(HEADROOM * max(scores), scatter, len(of_runs), max(scores))
    engaged = [(run["dtype"], run["mean_ratio"]) for run in runs if run["mean_ratio"] is not None]
    low = {dtype: min(m for d, m in engaged if d == dtype) for dtype in {d for d, _ in engaged}}
    return Limits(device_class, "", rows, low)


def _scatter(runs: list[list[tuple[int, list[float]]]]) -> float:
    """Standard deviation of the log-ratio between prompts of one site and run.

    Where a run has one prompt only, that between runs stands in, which is no less.
    """
    logs = [[_log(r) for r in ratios] for groups in runs for _, ratios in groups]
    several = [variance(group) for group in logs if len(group) > 1]
    if several:
        return max(math.sqrt(fmean(several)), LEAST_SCATTER)
    single = [group[0] for group in logs]
    return max(stdev(single), LEAST_SCATTER) if len(single) > 1 else 0.25


def _log(ratio: float) -> float:
    return math.log(max(ratio, LEAST))


def _plain(ratio: float) -> float:
    return round(float(ratio), 4)
