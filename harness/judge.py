"""`harness.compare`: load both sides, ask the checks, give the verdict. Prints nothing."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.errors import BackendUnavailable
from engine.files import ModelFiles, find_model

from . import environment
from .backends import Backend, Request, load_backend, only_dtype
from .checks import chosen
from .checks import environment as environment_check
from .comparison import Comparison
from .diagnosis import diagnose
from .errors import BadOption, BadTrace
from .limits import find_limits
from .metrics import FLOOR
from .probes import read_prompts
from .reference import PROMPTS, LiveReference, Oracle, Reference, Truth, has_tokenizer
from .types import ERROR, SKIP, CheckResult, Probe, Verdict

DEPTHS = ("block", "module")
ALLOWABLE = ("remote-code", "pickle")
Progress = Callable[[int, "int | None", str], None]


def compare(
    model: str | Path,
    candidate: str | Callable[..., Any] = "engine",
    reference: str | None = None,
    dtype: str = "float32",
    checks: Sequence[str] | None = None,
    *,
    device: str | None = None,
    prompts: str | Path | None = None,
    until_decided: bool = False,
    depth: str = "block",
    revision: str | None = None,
    allow: Collection[str] = (),
    progress: Progress | None = None,
    into: Verdict | None = None,
) -> Verdict:
    """Judge `candidate` against `reference` on a model, in this process.

    `candidate` is a backend's name or a function from token ids to logits (see
    `backends/python.py`). `reference` None means torch where it is installed, else golden. A
    `dtype` other than float32 adds its rung to the float32 one. `until_decided` adds prompts as
    long as they can decide what is inconclusive. `depth` "module" measures inside every block, not
    only inside the first that fails. `allow` names what the torch
    backend otherwise refuses: "remote-code", "pickle". `into` is filled as answers come,
    so that a caller has what there is when an error ends the run. `progress(done, total, what)` is
    told what goes on, total None where it is not known. Raises EngineError for bad
    input; a divergence is no error, it is in the verdict.
    """
    if dtype not in FLOOR:
        raise BackendUnavailable(f"dtype {dtype!r} is not one of {', '.join(FLOOR)}")
    if depth not in DEPTHS:
        raise BadOption(f"--depth {depth!r}: there are {', '.join(DEPTHS)}")
    for name in allow:
        if name not in ALLOWABLE:
            raise BadOption(f"--allow {name!r}: there are {', '.join(ALLOWABLE)}")
    questions = chosen(checks)
    files = find_model(model, revision, pickles="pickle" in allow)
    reference = reference or ("torch" if installed("torch", "transformers") else "golden")
    named = candidate if isinstance(candidate, str) else getattr(candidate, "__qualname__", "?")
    verdict = into if into is not None else Verdict("", "", "", "", "")
    verdict.model, verdict.candidate, verdict.reference = str(model), named, reference
    verdict.dtype = dtype
    for rung in _rungs(candidate, reference, Request(files, dtype, device)):
        verdict.dtype = rung
        request = Request(files, rung, device, allow=allow)
        comparison = _load(request, candidate, reference, progress, verdict.seconds)
        comparison.probes += _prompts(prompts, comparison.reference, files)
        comparison.depth = depth
        if until_decided:
            comparison.settle()
        ask(comparison, questions, verdict)
    verdict.peak_memory_bytes = environment.peak_memory_bytes()
    return verdict


def comparison_of(
    model: str | Path,
    candidate: str | Callable[..., Any] = "engine",
    reference: str | None = None,
    dtype: str = "float32",
    *,
    device: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Both sides of one rung, loaded, with nothing asked yet."""
    if dtype not in FLOOR:
        raise BackendUnavailable(f"dtype {dtype!r} is not one of {', '.join(FLOOR)}")
    request = Request(find_model(model, revision), dtype, device)
    return _load(request, candidate, reference or "torch", progress, {})


def _load(
    request: Request,
    candidate: str | Callable[..., Any],
    reference: str,
    progress: Progress | None,
    seconds: dict[str, float],
) -> Comparison:
    tell, rung = progress or (lambda done, total, what: None), request.dtype
    begin = time.perf_counter()
    tell(0, None, f"loading the candidate, {rung}")
    actual = _candidate(candidate, request)
    loaded = time.perf_counter()
    tell(0, None, f"loading the reference, {rung}")
    expected = load_reference(reference, replace(request, device=None))
    _add(seconds, f"load candidate {rung}", loaded - begin)
    _add(seconds, f"load reference {rung}", time.perf_counter() - loaded)
    limits = find_limits(environment.device_class(actual.device))
    return Comparison(request.files, expected, actual, _probes(expected, actual), limits, progress)


def _probes(reference: Reference, candidate: Backend) -> list[Probe]:
    """The reference's probes, or those that the candidate has on record."""
    recorded = getattr(candidate, "probes", None)
    if recorded is None:
        return reference.probes
    if not reference.recorded:
        return list(recorded)
    known = {probe.tokens for probe in recorded}
    common = [probe for probe in reference.probes if probe.tokens in known]
    if not common:
        raise BadTrace(
            f"{candidate.name} holds none of the probes that {reference.name} holds: export those "
            "with harness trace --probes, and run them"
        )
    return common


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
    diffs, decisions = comparison.judged_sites()
    verdict.sites += [*diffs, *comparison.inner]
    verdict.decisions += [*decisions, *comparison.decisions]
    verdict.diagnosis = diagnose(verdict)


def _rungs(
    candidate: str | Callable[..., Any], reference: str, request: Request
) -> tuple[str, ...]:
    """The dtypes to ask at: float32 and the one wanted, or the only one that a side is there at."""
    sides = [side for side in (candidate, reference) if isinstance(side, str)]
    fixed = {side: dtype for side in sides if (dtype := only_dtype(side, request))}
    if len(set(fixed.values())) > 1:
        told = " and ".join(f"{side} is at {dtype}" for side, dtype in fixed.items())
        raise BadOption(f"{told}: both sides must be at one dtype")
    return tuple(set(fixed.values()) or dict.fromkeys(("float32", request.dtype)))


def load_reference(name: str, request: Request, prompts: int = PROMPTS) -> Reference:
    """A reference by its name, with the truth it is measured against.

    `prompts` is how many probes of each kind a live one begins with.
    """
    if name.partition(":")[0] == "golden":
        from .golden.store import GoldenReference

        return GoldenReference(request.files, request.dtype, name.partition(":")[2])
    twin = load_backend(name, request, others=["golden"])
    return LiveReference(request.files, twin, _truth(twin, request), prompts)


def installed(*packages: str) -> bool:
    """Whether all of these can be imported, without importing them."""
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _truth(twin: Backend, request: Request) -> Truth | None:
    """The float64 oracle: PyTorch live, or none."""
    if not installed("torch", "transformers"):
        return None
    from .backends.torch import TorchBackend, load

    torch = twin if isinstance(twin, TorchBackend) else load(replace(request, argument=""))
    return Oracle(torch.oracle())


def _candidate(candidate: str | Callable[..., Any], request: Request) -> Backend:
    if callable(candidate):
        from .backends.python import PythonBackend

        return PythonBackend(candidate, candidate.__qualname__, request.dtype)
    if candidate.partition(":")[0] == "golden":
        raise BadOption("candidate 'golden': a recording can only be a reference")
    return load_backend(candidate, request)


def _prompts(path: str | Path | None, reference: Reference, files: ModelFiles) -> list[Probe]:
    """The user's own probes; texts go through the reference's tokenizer."""
    if path is None:
        return []
    if reference.recorded or not isinstance(reference, LiveReference):
        raise BadOption(
            f"--prompts {path}: a recording knows its own probes only; use --reference torch"
        )
    encode = reference.encode if has_tokenizer(files) else None
    return read_prompts(Path(path), encode, reference.rows)


def _add(seconds: dict[str, float], what: str, more: float) -> None:
    seconds[what] = seconds.get(what, 0.0) + more
