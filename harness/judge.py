"""`harness.compare`: load both sides, ask the checks, give the verdict. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from engine.files import find_model
from engine.weights import floating_dtypes

from . import environment, memory
from .backends import Request, only_dtype
from .checks import chosen
from .checks import environment as environment_check
from .comparison import Comparison
from .diagnosis import diagnose
from .errors import BadOption
from .probes import GREEDY, read_prompts
from .reference import LiveReference, has_tokenizer
from .resume import Resume
from .sides import Candidate, Progress, default_reference, how_held, load_sides, name_of
from .streaming import StreamedComparison
from .token_maps import token_maps
from .types import ERROR, FAIL, INCONCLUSIVE, SKIP, CheckResult, Probe, Verdict

DEPTHS = ("block", "module")
ALLOWABLE = ("remote-code", "pickle")


def compare(
    model: str | Path,
    candidate: Candidate = "engine",
    reference: str | None = None,
    dtype: str = "float32",
    checks: Sequence[str] | None = None,
    *,
    device: str | None = None,
    prompts: str | Path | None = None,
    original: str | Path | None = None,
    until_decided: bool = False,
    depth: str = "block",
    revision: str | None = None,
    allow: Collection[str] = (),
    kinds: Collection[str] | None = None,
    stream: bool | None = None,
    resume: Path | None = None,
    ranks: int = 1,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    into: Verdict | None = None,
) -> Verdict:
    """Judge `candidate` against `reference` on a model, in this process.

    `candidate` is a backend's name or a function from token ids to logits (see
    `backends/python.py`). `reference` None means torch where it is installed, else golden. A
    `dtype` other than float32 adds its rung to the float32 one. `original` is what a quantised
    model was made from: what quantising lost is reported beside the verdict. `until_decided` adds
    prompts as long as they can decide what is inconclusive. `depth` "module" measures inside every
    block, not only inside the first that fails. `allow` names what the torch
    backend otherwise refuses: "remote-code", "pickle". `kinds` are the kinds of probes to run, all
    without it. `stream` runs both sides part by part, so that the model need not fit into memory;
    None does so where it does not fit, and `resume` is a file to go on from after an interruption.
    `ranks` is how many processes the engine runs in, which split the model (docs/RANKS.md).
    `into` is filled as answers come, so that a caller has what there is when an error ends the run.
    `progress(done, total, what)` is told what goes on, total None where it is not known;
    `notice(text)` what the work will take, where that is much. Raises EngineError for bad input; a
    divergence is no error, it is in the verdict.
    """
    if depth not in DEPTHS:
        raise BadOption(f"--depth {depth!r}: there are {', '.join(DEPTHS)}")
    for name in allow:
        if name not in ALLOWABLE:
            raise BadOption(f"--allow {name!r}: there are {', '.join(ALLOWABLE)}")
    if resume is not None and not resume.parent.is_dir():
        raise BadOption(f"--resume {resume}: the folder {resume.parent} does not exist")
    if ranks < 1 or (ranks > 1 and (stream or resume)):
        raise BadOption(f"--ranks {ranks}: at least 1, and more than 1 not with --stream, --resume")
    questions = chosen(checks)
    files = find_model(model, revision, pickles="pickle" in allow)
    source = None if original is None else find_model(original)
    reference = reference or default_reference()
    named = name_of(candidate)
    verdict = into if into is not None else Verdict("", "", "", "", "")
    verdict.model, verdict.candidate, verdict.reference = str(model), named, reference
    verdict.dtype, verdict.ranks = dtype, ranks
    rungs, truth = _rungs(candidate, reference, Request(files, dtype, device)), None
    for rung in rungs:
        verdict.dtype = rung
        request = Request(files, rung, device, allow=allow, ranks=ranks)
        live = reference.partition(":")[0] != "golden"
        held = how_held(candidate) | ({"streamable": False} if ranks > 1 else {})
        parts = memory.part_by_part(files, rung, live, True if resume else stream, notice, **held)
        if parts and (until_decided or depth != "block"):
            raise BadOption("--until-decided and --depth module need the whole model in memory")
        later = rung != rungs[-1] and floating_dtypes(files.weights) == {rungs[-1]}
        comparison = load_sides(
            request, candidate, reference, progress, verdict.seconds, parts,
            greedy=kinds is None or GREEDY in kinds, truth=truth, keep=later,
        )  # fmt: skip
        comparison.probes += _prompts(prompts, comparison)
        unmade = () if parts or comparison.reference.recorded else (GREEDY,)
        comparison.probes = _of_kinds(comparison.probes, kinds, unmade)
        comparison.depth = depth
        comparison.original = source
        if isinstance(comparison, StreamedComparison):
            begin = time.perf_counter()
            _observe_all(comparison, reference, resume, notice)
            _add(verdict.seconds, f"stream {rung}", time.perf_counter() - begin)
        if until_decided:
            comparison.settle()
        ask(comparison, questions, verdict)
        # The oracle of a model that is stored at a later rung's dtype is that rung's too; all else
        # is gone before the next rung is loaded.
        truth = getattr(comparison.reference, "truth", None) if later else None
        del comparison
    verdict.peak_memory_bytes = environment.peak_memory_bytes()
    return verdict


def comparison_of(
    model: str | Path,
    candidate: Candidate = "engine",
    reference: str | None = None,
    dtype: str = "float32",
    *,
    device: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Both sides of one rung, loaded, with nothing asked yet."""
    request = Request(find_model(model, revision), dtype, device)
    return load_sides(request, candidate, reference or "torch", progress, {})


def ask(comparison: Comparison, questions: Mapping[str, ModuleType], verdict: Verdict) -> None:
    """Put the questions of one rung, the environment's first, and add the answers to a verdict."""
    rung = comparison.dtype
    verdict.device = comparison.candidate.device
    verdict.calibration = comparison.limits.describe()
    if not verdict.environment:
        verdict.environment = environment.describe()
    for name, check in {"environment": environment_check, **questions}.items():
        if not getattr(check, "applies", lambda comparison: True)(comparison):
            continue
        begin = time.perf_counter()
        comparison.tell(0, None, f"{name}, {rung}")
        reason = comparison.candidate.limits.get(name)
        result = CheckResult(name, SKIP, reason) if reason else check.run(comparison)
        result = replace(result, dtype=rung)
        _add(verdict.seconds, name, time.perf_counter() - begin)
        if name in questions or result.verdict == ERROR:
            verdict.checks.append(result)
        if result.verdict == ERROR:
            break  # no number of this rung would mean anything
    _tell_stale(comparison, verdict)
    diffs, decisions = comparison.judged_sites()
    verdict.sites += [*diffs, *comparison.inner]
    verdict.decisions += [*decisions, *comparison.decisions]
    verdict.token_maps += token_maps(comparison, diffs)
    verdict.diagnosis = diagnose(verdict)


def _tell_stale(comparison: Comparison, verdict: Verdict) -> None:
    """Where a golden is what a candidate fails against, ask whether the golden is to blame.

    Of a stale one no failure counts, but those of the weights, which are the model's own.
    """
    from .golden.store import GoldenReference

    rung = comparison.dtype
    failed = [c for c in verdict.checks if c.verdict == FAIL and c.dtype == rung]
    numeric = [check for check in failed if check.name != "weights"]
    if not numeric or not isinstance(comparison.reference, GoldenReference):
        return
    from .golden.freshness import freshness

    result = replace(freshness(comparison, comparison.reference), dtype=rung)
    verdict.checks.append(result)
    for check in numeric if result.verdict == ERROR else ():
        check.verdict, check.divergence = INCONCLUSIVE, None
        check.reason = f"the golden is stale: {check.reason}"


def _rungs(candidate: Candidate, reference: str, request: Request) -> tuple[str, ...]:
    """The dtypes to ask at: float32 and the one wanted, or the only one that a side is there at."""
    sides = [side for side in (candidate, reference) if isinstance(side, str)]
    fixed = {side: dtype for side in sides if (dtype := only_dtype(side, request))}
    if fixed and request.dtype not in ("float32", *fixed.values()):
        side, dtype = next(iter(fixed.items()))
        raise BadOption(f"--dtype {request.dtype}: {side} is at {dtype}")
    if len(set(fixed.values())) > 1:
        told = " and ".join(f"{side} is at {dtype}" for side, dtype in fixed.items())
        raise BadOption(f"{told}: both sides must be at one dtype")
    return tuple(set(fixed.values()) or dict.fromkeys(("float32", request.dtype)))


def _prompts(path: str | Path | None, comparison: Comparison) -> list[Probe]:
    """The user's own probes; texts go through the reference's tokenizer."""
    reference, candidate = comparison.reference, comparison.candidate
    if path is None:
        return []
    if hasattr(candidate, "probes"):
        raise BadOption(f"--prompts {path}: {candidate.name} holds its own probes only")
    if reference.recorded or not isinstance(reference, LiveReference):
        raise BadOption(
            f"--prompts {path}: a recording knows its own probes only; use --reference torch"
        )
    encode = reference.encode if has_tokenizer(comparison.files) else None
    return read_prompts(Path(path), encode, reference.rows)


def _of_kinds(
    probes: Sequence[Probe], kinds: Collection[str] | None, unmade: Sequence[str]
) -> list[Probe]:
    """The probes of some kinds; BadOption names those there are, `unmade` ones with them."""
    known = dict.fromkeys([*(probe.kind for probe in probes), *unmade])
    for kind in kinds or ():
        if kind not in known:
            raise BadOption(f"--kinds {kind!r}: there are {', '.join(known)}")
    return [probe for probe in probes if kinds is None or probe.kind in kinds]


def _observe_all(
    comparison: StreamedComparison,
    reference: str,
    resume: Path | None,
    notice: Callable[[str], None] | None,
) -> None:
    """Run all probes part by part, once it is known that there is room for that."""
    files, dtype = comparison.files, comparison.dtype
    live = reference.partition(":")[0] != "golden"
    width = memory.check_streamed(files, dtype, live, comparison.probes, notice)
    state = None
    if resume is not None:
        if dtype != "float32":  # every rung has a state of its own
            resume = resume.with_name(f"{resume.name}.{dtype}")
        tokens = sum(len(probe.tokens) for probe in comparison.probes)
        memory.check_disk(resume, tokens * width * memory.A_FEATURE, notice)
        sides = comparison.candidate, comparison.reference
        recorded = [file for side in sides if (file := getattr(side, "file", None))]
        stat = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in (*files.weights, *recorded)
        ]
        state = Resume(
            resume,
            {
                "config": dict(files.config),
                "files": stat,
                "sides": [*(side.name for side in sides), dtype, comparison.candidate.device],
                "probes": [[p.name, p.tokens, p.scales] for p in comparison.probes],
            },
        )
    comparison.observe_all(state)


def _add(seconds: dict[str, float], what: str, more: float) -> None:
    seconds[what] = seconds.get(what, 0.0) + more
