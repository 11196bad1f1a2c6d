"""Both sides of a comparison, loaded: whole, or to be run part by part."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from . import environment
from .backends import Backend, Request, find_backend, load_backend
from .backends._streamed import Streamed
from .comparison import Comparison
from .errors import BadOption, BadTrace
from .limits import find_limits
from .memory import size_of
from .products import growth
from .reference import PROMPTS, LiveReference, Oracle, Reference, Truth
from .streaming import StreamedComparison
from .types import Probe

Candidate = str | Callable[..., Any]
Progress = Callable[[int, "int | None", str], None]


def load_sides(
    request: Request,
    candidate: Candidate,
    reference: str,
    progress: Progress | None,
    seconds: dict[str, float],
    streamed: bool = False,
    *,
    greedy: bool = True,
    truth: Truth | None = None,
    keep: bool = False,
) -> Comparison:
    """A comparison with nothing asked yet; `seconds` gets what loading took.

    `greedy` says whether the reference's own continuation is to be a probe. `truth` is that of an
    earlier rung, used where its weights are the same at this one; `keep` has what it gives kept for
    a later rung.
    """
    tell, rung = progress or (lambda done, total, what: None), request.dtype
    begin = time.perf_counter()
    tell(0, None, f"loading the candidate, {rung}")
    actual = _streamed(candidate, request) if streamed else _candidate(candidate, request)
    loaded = time.perf_counter()
    tell(0, None, f"loading the reference, {rung}")
    host = replace(request, device=None, ranks=1)
    oracle = twin = None
    if streamed and not _is_golden(reference):
        expected, oracle, twin = load_streamed_reference(reference, host)
    else:
        expected = load_reference(reference, host, greedy=greedy, truth=truth, keep=keep)
    seconds[f"load candidate {rung}"] = loaded - begin
    seconds[f"load reference {rung}"] = time.perf_counter() - loaded
    longest = size_of(request.files).longest
    wider = growth(getattr(actual, "sums", "plain"), longest, rung) / expected.growth(longest)
    limits = find_limits(environment.device_class(actual.device)).widened(longest, wider)
    known = request.files, expected, actual, _probes(expected, actual), limits, progress
    return StreamedComparison(*known, oracle, twin) if streamed else Comparison(*known)


def load_reference(
    name: str,
    request: Request,
    prompts: int = PROMPTS,
    *,
    greedy: bool = True,
    truth: Truth | None = None,
    keep: bool = False,
) -> Reference:
    """A reference by its name, with the truth it is measured against.

    `prompts` is how many probes of each kind a live one begins with; `greedy`, `truth` and `keep`
    are those of `load_sides`.
    """
    if _is_golden(name):
        from .golden.store import GoldenReference

        return GoldenReference(request.files, request.dtype, name.partition(":")[2])
    twin = load_backend(name, request, others=["golden"])
    truth = _truth(twin, request, truth, keep)
    return LiveReference(request.files, twin, truth, prompts, greedy=greedy)


def load_streamed_reference(name: str, request: Request) -> tuple[Reference, Streamed, Streamed]:
    """A live reference that knows its probes and tokens, the oracle, and its twin, part by part."""
    if not installed("torch", "transformers"):
        raise BadOption("streaming needs PyTorch for the oracle, or --reference golden")
    twin = _streamed(name, request)
    whole = twin if name == "torch" else _streamed("torch", request)
    return LiveReference(request.files, twin, None, 1, greedy=False), whole.oracle(), twin


def name_of(candidate: Candidate) -> str:
    """What a candidate is called; a partial function or an object goes by its type."""
    if isinstance(candidate, str):
        return candidate
    return getattr(candidate, "__qualname__", type(candidate).__name__)


def how_held(candidate: Candidate) -> dict[str, bool]:
    """Whether a candidate is `loaded` here, not recorded or served elsewhere, and `streamable`."""
    if not isinstance(candidate, str):
        return {"loaded": True, "streamable": False}
    if _is_golden(candidate):  # refused when it is to be loaded
        return {}
    module, _ = find_backend(candidate)
    elsewhere, parts = (hasattr(module, name) for name in ("only_dtype", "load_streamed"))
    return {"loaded": not elsewhere, "streamable": parts}


def default_reference() -> str:
    """torch where it is installed, else golden."""
    return "torch" if installed("torch", "transformers") else "golden"


def installed(*packages: str) -> bool:
    """Whether all of these can be imported, without importing them."""
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _is_golden(name: str) -> bool:
    return name.partition(":")[0] == "golden"


def _truth(
    twin: Backend, request: Request, earlier: Truth | None = None, keep: bool = False
) -> Truth | None:
    """The float64 oracle: PyTorch live, or none. An earlier one of the same weights is gone on
    with, and what it is known to give."""
    if not installed("torch", "transformers"):
        return None
    from .backends.torch import TorchBackend, load

    torch = twin if isinstance(twin, TorchBackend) else load(replace(request, argument=""))
    if isinstance(earlier, Oracle) and torch.is_lifted_by(earlier.backend):
        return Oracle(earlier.backend, request.dtype, earlier.passes, keep=keep)
    return Oracle(torch.oracle(), request.dtype, keep=keep)


def _candidate(candidate: Candidate, request: Request) -> Backend:
    if callable(candidate):
        if request.ranks > 1:
            raise BadOption(f"--ranks {request.ranks}: a function runs in one process; engine can")
        from .backends.python import PythonBackend

        return PythonBackend(candidate, name_of(candidate), request.dtype)
    if _is_golden(candidate):
        raise BadOption("candidate 'golden': a recording can only be a reference")
    if request.ranks > 1 and candidate != "engine":
        raise BadOption(f"--ranks {request.ranks}: {candidate} runs in one process; engine can")
    return load_backend(candidate, request)


def _streamed(name: Candidate, request: Request) -> Any:
    """A side to be run part by part. Raises BadOption for one that cannot be."""
    if isinstance(name, str):
        module, argument = find_backend(name, ["golden"])
        if hasattr(module, "load_streamed"):
            return module.load_streamed(replace(request, argument=argument))
    raise BadOption(f"{name_of(name)} cannot be streamed: engine, mlx-lm, torch and traces can")


def _probes(reference: Reference, candidate: Any) -> list[Probe]:
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
