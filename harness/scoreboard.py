"""How good is the harness? Faults planted in right candidates, and right candidates left alone.

A fault is found when the verdict fails, and placed when the first divergence names its block, and
the module in it. A clean run that does not pass is a false alarm. The weights check is left out, so
that numbers alone have to find what a wrong parameter does.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.files import find_model

from . import environment
from .backends import Backend, Request, load_backend
from .checks import all_checks
from .comparison import Comparison
from .faults import Fault, NotApplicable, all_faults
from .faults._patient import Patient
from .limits import find_limits
from .random_models import config_of, write_model
from .sweep import Task
from .types import FAIL, PASS, Verdict

CANDIDATES = ("engine", "mlx-lm")
UNASKED = ("environment", "weights", "greedy")  # greedy repeats what cache and distribution see


@dataclass(frozen=True)
class Score:
    """One fault on one model: what the harness said of it. `block` and `module` say whether the
    right one was named, None where the fault has none."""

    fault: str
    candidate: str
    model: str
    seed: int
    verdict: str
    equivalent: bool
    block: bool | None
    module: bool | None
    named: str
    diagnosis: str


def run_model(task: Task) -> list[dict[str, Any]]:
    """Plant every fault that a model has a place for, one by one; a clean run comes first.

    A task names family, variant, seed, candidate, dtype, and faults (names, or None for all).
    """
    from .judge import load_reference
    from .reference import Remembered

    config = config_of(task["family"], task["variant"])
    wanted = all_faults()
    if task["faults"] is not None:
        wanted = {name: wanted[name] for name in task["faults"]}
    scores: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mlx-parity-") as folder:
        files = find_model(write_model(Path(folder), config, seed=task["seed"]))
        request = Request(files, task["dtype"])
        reference = Remembered(load_reference("torch", request))  # type: ignore[arg-type]

        def judged(candidate: Backend) -> Verdict:
            return _judged(reference, candidate, files)

        try:
            clean = judged(load_backend(task["candidate"], request))
        except EngineError:
            return []  # this candidate does not have the family
        scores.append(_score(task, "", None, clean, 0, None))
        if clean.verdict != PASS:
            return scores  # what is wrong already says nothing about a fault
        for name, fault in wanted.items():
            candidate = load_backend(task["candidate"], request)
            patient = Patient(candidate, config)
            block = _block(name, task["seed"], len(patient.blocks))
            try:
                fault.inject(patient, block)
            except NotApplicable:
                continue
            scores.append(_score(task, name, fault, judged(candidate), block, patient))
    return scores


def _judged(reference: Any, candidate: Backend, files: Any) -> Verdict:
    from .judge import ask

    questions = {name: check for name, check in all_checks().items() if name not in UNASKED}
    limits = find_limits(environment.device_class(candidate.device))
    verdict = Verdict("", candidate.name, "torch", candidate.dtype, candidate.device)
    comparison = Comparison(files, reference, candidate, reference.probes, limits)
    ask(comparison, questions, verdict)
    return verdict


def _block(name: str, seed: int, blocks: int) -> int:
    """The block to plant a fault in: another one for every fault and seed, on every machine."""
    return (sum(name.encode()) + seed) % blocks


def _score(
    task: Task, name: str, fault: Fault | None, verdict: Verdict, block: int, patient: Any
) -> dict[str, Any]:
    first = verdict.first_divergence
    right_block = right_module = None
    if fault and not fault.equivalent and verdict.verdict == FAIL:
        right_block, right_module = _placed(fault, verdict, block, patient)
    score = Score(
        fault=name,
        candidate=task["candidate"],
        model=f"{task['family']}/{task['variant']}",
        seed=task["seed"],
        verdict=verdict.verdict,
        equivalent=bool(fault and fault.equivalent),
        block=right_block,
        module=right_module,
        named="" if first is None else f"{first.check} {first.site or ''}",
        diagnosis=verdict.diagnosis or _open(verdict),
    )
    return asdict(score)


def _placed(
    fault: Fault, verdict: Verdict, block: int, patient: Patient
) -> tuple[bool | None, bool | None]:
    """Whether the verdict names the right place."""
    first = verdict.first_divergence
    assert first is not None
    site = first.site or ""
    if fault.where == "block":
        blocks = next(c.measures.get("failed_blocks") for c in verdict.checks if c.name == "blocks")
        path = patient.site(fault.role)
        part = site.partition(f".{first.block}.")[2]
        inside = not fault.role or part == path or part.startswith(path + ".")
        return first.block == block and blocks == [block], first.block == block and inside
    if fault.where == "blocks":
        path = patient.site(fault.role)
        part = site.partition(f".{first.block}.")[2]
        return None, first.block is not None and (part == path or part.startswith(path + "."))
    if fault.where == "model":
        return None, site == patient.site(fault.role) or (
            first.site == "lm_head" and fault.role == "head"
        )
    return None, first.check == fault.where


def _open(verdict: Verdict) -> str:
    return "; ".join(c.reason or "" for c in verdict.checks if c.verdict not in (PASS, "skip"))


@dataclass(frozen=True)
class Board:
    """Counts of (right, all) over runs."""

    detected: tuple[int, int]
    block: tuple[int, int]
    module: tuple[int, int]
    equivalent_passed: tuple[int, int]
    clean_passed: tuple[int, int]


def board(scores: Sequence[Mapping[str, Any]]) -> Board:
    """Sum up scores."""
    faulty = [s for s in scores if s["fault"] and not s["equivalent"]]
    equivalent = [s for s in scores if s["equivalent"]]
    clean = [s for s in scores if not s["fault"]]

    def count(rows: Sequence[Mapping[str, Any]], right: Any) -> tuple[int, int]:
        return sum(bool(right(s)) for s in rows), len(rows)

    return Board(
        count(faulty, lambda s: s["verdict"] == FAIL),
        count([s for s in faulty if s["block"] is not None], lambda s: s["block"]),
        count([s for s in faulty if s["module"] is not None], lambda s: s["module"]),
        count(equivalent, lambda s: s["verdict"] == PASS),
        count(clean, lambda s: s["verdict"] == PASS),
    )


def by_kind(scores: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Board]]:
    """A board for every kind of fault."""
    kinds: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for score in scores:
        if score["fault"]:
            kinds[score["fault"].partition(".")[0]].append(score)
    for kind in sorted(kinds):
        yield kind, board(kinds[kind])
