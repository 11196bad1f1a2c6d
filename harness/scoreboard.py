"""How good is the harness? Faults planted in right candidates, and right candidates left alone.

A fault is found when the verdict fails, and placed when the first divergence names its block, and
the module in it. A clean run that does not pass is a false alarm. The weights check is left out, so
that numbers alone have to find what a wrong parameter does.
"""

from __future__ import annotations

import platform
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.files import ModelFiles, find_model

from . import environment
from .backends import Backend, Request, load_backend
from .checks import all_checks
from .comparison import Comparison
from .errors import BadOption
from .faults import Fault, NotApplicable, all_faults
from .faults._patient import Patient
from .golden.manifest import identity
from .limits import find_limits
from .metrics import FLOOR
from .random_models import config_of, variants, write_model
from .reference import PROMPTS, Reference
from .sweep import Task
from .types import FAIL, PASS, Probe, Verdict

CANDIDATES = ("engine", "mlx-lm")
SHIPPED = ("tiny-llama", "tiny-gemma3", "tiny-gpt2")  # with tokenizers, which random models lack
CLEAN_FROM = 1000  # seeds that calibration never used
UNASKED = ("environment", "weights", "greedy")  # greedy repeats what cache and distribution see


@dataclass(frozen=True)
class Score:
    """One fault on one model: what the harness said of it. `block` and `module` say whether the
    right one was named, None where the fault has none."""

    fault: str
    candidate: str
    model: str
    dtype: str
    seed: int
    verdict: str
    equivalent: bool
    block: bool | None
    module: bool | None
    named: str
    diagnosis: str


def shipped_and_random() -> list[str]:
    """Every model a full run uses: random ones of every variant, and those shipped."""
    return [*(f"{family}/{variant}" for family, variant in variants()), *SHIPPED]


def plan(
    models: Sequence[str],
    candidates: Sequence[str],
    seeds: int,
    clean_seeds: int,
    faults: list[str] | None = None,
) -> list[Task]:
    """Tasks of a full run: every fault on every model at float32, and clean runs at every dtype.

    `faults` are the names of some, None for all. A model that is no random one is named with its
    hashes, since it may be another one where the task runs, or when a sweep goes on. Raises
    BadOption for a fault that is not known.
    """
    for name in faults or ():
        if name not in all_faults():
            raise BadOption(f"--faults {name!r}: harness faults list names all there are")
    given = {m: {"identity": identity(find_model(m))} for m in models if not _is_random(m)}
    tasks: list[Task] = [
        {"model": m, "seed": seed, "candidate": candidate, "dtype": "float32", "faults": faults}
        | given.get(m, {})
        for seed in range(seeds)
        for m in models
        for candidate in candidates
        if seed == 0 or "/" in m  # only random models have seeds
    ]
    for seed in range(CLEAN_FROM, CLEAN_FROM + clean_seeds):
        tasks += [
            {"model": m, "seed": seed, "candidate": "engine", "dtype": dtype, "faults": []}
            for m in models
            for dtype in FLOOR
            if "/" in m
        ]
    return tasks


def run_once(
    models: Sequence[str], candidate: str, faults: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Every fault once, on the first of some models that has a place for it; clean runs too.

    To be quick there is one prompt of a kind.
    """
    left = set(faults)
    for model in models:
        task = {"model": model, "seed": 0, "candidate": candidate, "dtype": "float32"}
        scores = run_model({**task, "faults": sorted(left), "prompts": 1})
        left -= {score["fault"] for score in scores}
        yield from scores


def run_model(task: Task) -> list[dict[str, Any]]:
    """Plant every fault that a model has a place for, one by one; a clean run comes first.

    A task names a model (FAMILY/VARIANT, made at random from its seed, or what `--model` takes),
    candidate, dtype, and faults (names, or None for all); `prompts` of a kind where not PROMPTS,
    `reference` where not torch. Raises BadOption for a model that is not of the task's `identity`.
    """
    wanted = all_faults()
    if task["faults"] is not None:
        wanted = {name: wanted[name] for name in task["faults"]}
    with tempfile.TemporaryDirectory(prefix="mlx-parity-") as folder:
        if _is_random(task["model"]):
            config = config_of(*task["model"].split("/"))
            files = find_model(write_model(Path(folder), config, seed=task["seed"]))
        else:
            files = find_model(task["model"])
            if task.get("identity") not in (None, identity(files)):
                raise BadOption(
                    f"--models {task['model']}: {files.folder} on {platform.node()} holds another "
                    "model than the one that was asked for: copy that there"
                )
        return list(_scores(task, wanted, files))


def _is_random(model: str) -> bool:
    """Whether it is FAMILY/VARIANT, to be made from a seed."""
    return tuple(model.split("/", 1)) in variants()


def _scores(task: Task, wanted: Mapping[str, Fault], files: ModelFiles) -> Iterator[dict[str, Any]]:
    from .reference import Remembered
    from .sides import load_reference

    request = Request(files, task["dtype"])
    prompts = task.get("prompts", PROMPTS)
    reference = Remembered(load_reference(task.get("reference", "torch"), request, prompts))
    probes = _probes(reference, task["seed"])
    try:
        candidate = load_backend(task["candidate"], request)
    except EngineError:
        return  # this candidate does not have the family
    clean = _judged(reference, candidate, files, probes)
    if clean.error:
        return  # nor this dtype on this device
    yield _score(task, "", None, clean, 0, None)
    if clean.verdict != PASS:
        return  # what is wrong already says nothing about a fault
    for name, fault in wanted.items():
        planted = _planted(fault, name, task, request)
        if planted is not None:
            patient, block = planted
            verdict = _judged(reference, patient.backend, files, probes)
            yield _score(task, name, fault, verdict, block, patient)


def _planted(fault: Fault, name: str, task: Task, request: Request) -> tuple[Patient, int] | None:
    """A fresh candidate with a fault in the first block, from one that its name and the seed
    choose, that has a place for it; None where no block has."""
    start, tried, choices = sum(name.encode()) + task["seed"], 0, 1
    while tried < choices:
        patient = Patient(load_backend(task["candidate"], request), request.files.config)
        choices = len(patient.blocks) if fault.where == "block" else 1
        block = (start + tried) % len(patient.blocks)
        try:
            fault.inject(patient, block)
            return patient, block
        except NotApplicable:
            tried += 1
    return None


def _probes(reference: Reference, seed: int) -> list[Probe]:
    """Other prompts of the same kinds for every seed."""
    found = []
    for probe, i in _numbered(reference.probes):
        other = reference.more(probe.kind, i + PROMPTS * seed) if seed else None
        found.append(other or probe)
    return found


def _numbered(probes: Sequence[Probe]) -> Iterator[tuple[Probe, int]]:
    counts: dict[str, int] = defaultdict(int)
    for probe in probes:
        yield probe, counts[probe.kind]
        counts[probe.kind] += 1


def _judged(
    reference: Reference, candidate: Backend, files: ModelFiles, probes: Sequence[Probe]
) -> Verdict:
    from .judge import ask

    questions = {name: check for name, check in all_checks().items() if name not in UNASKED}
    limits = find_limits(environment.device_class(candidate.device))
    verdict = Verdict("", candidate.name, "torch", candidate.dtype, candidate.device)
    comparison = Comparison(files, reference, candidate, probes, limits)
    try:
        ask(comparison, questions, verdict)
    except EngineError as error:
        verdict.error = str(error)
    return verdict


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
        model=task["model"],
        dtype=task["dtype"],
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
        inside = _is_in(site, first.block, fault, patient)
        return first.block == block and blocks == [block], first.block == block and inside
    if fault.where == "blocks":
        return None, first.block is not None and _is_in(site, first.block, fault, patient)
    if fault.where == "model":
        return None, site == patient.site(fault.role) or (
            first.site == "lm_head" and fault.role == "head"
        )
    return None, first.check == fault.where


def _is_in(site: str, block: int | None, fault: Fault, patient: Patient) -> bool:
    """Whether a site of a block is the part that a fault is in, or inside it."""
    path, part = patient.site(fault.role), site.partition(f".{block}.")[2]
    return not fault.role or part == path or part.startswith(path + ".")


def _open(verdict: Verdict) -> str:
    return "; ".join(c.reason or "" for c in verdict.checks if c.verdict not in (PASS, "skip"))


@dataclass(frozen=True)
class Board:
    """Counts of (right, all) over runs. A false alarm is a clean run or an equivalent that fails;
    what is inconclusive is no alarm, and no detection either."""

    detected: tuple[int, int]
    block: tuple[int, int]
    module: tuple[int, int]
    equivalent_quiet: tuple[int, int]
    clean_quiet: tuple[int, int]
    clean_passed: tuple[int, int]


def board(scores: Sequence[Mapping[str, Any]]) -> Board:
    """Sum up scores. Clean runs are those of the engine: mlx-lm has divergences of its own."""
    faulty = [s for s in scores if s["fault"] and not s["equivalent"]]
    equivalent = [s for s in scores if s["equivalent"]]
    clean = [s for s in scores if not s["fault"] and s["candidate"] == "engine"]

    def count(rows: Sequence[Mapping[str, Any]], right: Callable[[Any], Any]) -> tuple[int, int]:
        return sum(bool(right(s)) for s in rows), len(rows)

    return Board(
        detected=count(faulty, lambda s: s["verdict"] == FAIL),
        block=count([s for s in faulty if s["block"] is not None], lambda s: s["block"]),
        module=count([s for s in faulty if s["module"] is not None], lambda s: s["module"]),
        equivalent_quiet=count(equivalent, lambda s: s["verdict"] != FAIL),
        clean_quiet=count(clean, lambda s: s["verdict"] != FAIL),
        clean_passed=count(clean, lambda s: s["verdict"] == PASS),
    )


def by_kind(scores: Sequence[Mapping[str, Any]]) -> dict[str, Board]:
    """A board for every kind of fault."""
    kinds: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for score in scores:
        if score["fault"]:
            kinds[score["fault"].partition(".")[0]].append(score)
    return {kind: board(kinds[kind]) for kind in sorted(kinds)}
