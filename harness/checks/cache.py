"""Is a sequence fed through the cache in pieces what it is fed at once?"""

from __future__ import annotations

from ..comparison import Comparison
from ..metrics import first_bad_token, relative_error
from ..policy import effective_noise, judge, limit
from ..types import FAIL, INCONCLUSIVE, PASS, PROPAGATED, SKIP, CheckResult, Divergence, Probe, Site

ORDER = 6
DECODED = 12  # tokens fed one by one


def run(comparison: Comparison) -> CheckResult:
    """Prefill then decode, and chunks that end at every edge of a window, against the oracle."""
    name = "cache"
    if reason := comparison.candidate.limits.get(name):
        return CheckResult(name, SKIP, reason)
    probe = comparison.longest("window", "random")
    if probe is None:
        return CheckResult(name, SKIP, "no probe is long enough")
    evidence = comparison.evidence(probe)
    site = next(s for s in evidence.expected[PROPAGATED] if s.kind == "logits")
    noise = effective_noise(evidence.noise[PROPAGATED][site], comparison.dtype)
    allowed = limit(PROPAGATED, comparison.dtype)
    worst, measures = 0.0, {}
    for plan, chunks in plans(probe, comparison.window).items():
        actual = comparison.candidate.forward(probe.tokens, chunks=chunks)
        error = relative_error(actual, evidence.logits)
        ratio, verdict = judge(error, noise, allowed, evidence.has_oracle)
        measures[plan] = {"chunks": chunks, "error": error, "noise": noise, "ratio": ratio}
        worst = max(worst, ratio)
        if verdict == FAIL:
            return _fails(name, probe, site, plan, chunks, actual, error, noise, allowed, evidence)
    verdict = PASS if evidence.has_oracle else INCONCLUSIVE
    reason = f"{len(measures)} ways of feeding; at most {worst:.1f} x noise"
    return CheckResult(name, verdict, reason, measures)


def plans(probe: Probe, window: int | None) -> dict[str, list[int]]:
    """Ways of cutting a probe: names -> lengths that add up to it."""
    total = len(probe.tokens)
    decoded = min(DECODED, total - 1)
    found = {"prefill and decode": [total - decoded] + [1] * decoded}
    if window is not None and 2 * window + 1 <= total:
        found["chunks at the window's edges"] = _fill([window - 1, 2, window - 1, 1], total)
    else:
        found["uneven chunks"] = _fill([total // 3, 1, total // 4], total)
    return found


def _fill(sizes: list[int], total: int) -> list[int]:
    sizes = [size for size in sizes if size > 0]
    rest = total - sum(sizes)
    return [*sizes, rest] if rest else sizes


def _fails(
    name: str,
    probe: Probe,
    site: Site,
    plan: str,
    chunks: list[int],
    actual,
    error,
    noise,
    allowed,
    evidence,
) -> CheckResult:
    token = first_bad_token(actual, evidence.logits, noise, allowed)
    ratio = error / noise
    message = f"{plan} {chunks}: logits are {ratio:.3g} times the noise (limit {allowed:g})" + (
        "" if token is None else f", from token {token} on"
    )
    divergence = Divergence(
        name, probe.name, message, site.path, None, error, noise, ratio, allowed, token
    )
    return CheckResult(name, FAIL, message, {"plan": plan}, divergence=divergence)
