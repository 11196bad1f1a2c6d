"""Is a sequence fed through the cache in pieces what it is fed at once?"""

from __future__ import annotations

from ..comparison import Comparison
from ..routes import answered, measured
from ..types import SKIP, CheckResult, Probe

ORDER = 100
DECODED = 12  # tokens fed one by one


def run(comparison: Comparison) -> CheckResult:
    """Prefill then decode, and chunks that end at every edge of a window, against the oracle."""
    name = "cache"
    probe = comparison.longest("windows", "random")
    if probe is None:
        return CheckResult(name, SKIP, "no probe is long enough")
    seen = comparison.observation(probe)
    routes = {
        f"{plan} {chunks}": measured(
            comparison, seen, comparison.candidate.forward(probe.tokens, chunks=chunks)
        )
        for plan, chunks in plans(probe, comparison.window).items()
    }
    return answered(comparison, name, "ways of feeding", routes)


def plans(probe: Probe, window: int | None) -> dict[str, list[int]]:
    """Ways of cutting a probe: names -> lengths that add up to it."""
    total = len(probe.tokens)
    decoded = min(DECODED, total - 1)
    found = {
        "prefill and decode": [total - decoded] + [1] * decoded,
        "uneven chunks": _fill([total // 3, 1, total // 4], total),
    }
    if window is not None and 2 * window + 1 <= total:
        found["chunks at the window's edges"] = _fill([window - 1, 2, window - 1, 1], total)
    return found


def _fill(sizes: list[int], total: int) -> list[int]:
    sizes = [size for size in sizes if size > 0]
    rest = total - sum(sizes)
    return [*sizes, rest] if rest else sizes
