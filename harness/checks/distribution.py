"""Does the candidate give the next token the same probabilities?"""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import fmean, stdev

import numpy as np

from ..answers import undecided
from ..comparison import Comparison, Observation
from ..metrics import FLOOR, kl_from, log_likelihood, softmax
from ..policy import TIE
from ..types import FAIL, INCONCLUSIVE, LOGITS, PASS, SKIP, CheckResult, Divergence

ORDER = 80
MEASURE = "distribution"


def run(comparison: Comparison) -> CheckResult:
    """Kullback-Leibler divergence from the oracle, in units of the reference's own; best tokens.

    The root of the divergence grows as the error does, so its ratio is judged like any other. A
    best token may differ where the oracle's margin is within noise. Log-likelihood is reported.
    """
    seen = [o for o in comparison.observations() if o.fits]
    if not seen or not all(np.isfinite(o.actual).all() for o in seen):
        return CheckResult(MEASURE, SKIP, "the logits are not finite, or of another shape")
    ratios: dict[str, list[float]] = defaultdict(list)
    divergences = [_divergences(o) for o in seen]
    for o, (own, twin) in zip(seen, divergences, strict=True):
        ratios[o.probe.kind].append(_ratio(o, own, twin, comparison.dtype))
    has_oracle = all(o.has_oracle for o in seen)
    decisions = [
        comparison.decide(MEASURE, kind, values, len(ratios), site=LOGITS, has_oracle=has_oracle)
        for kind, values in ratios.items()
    ]
    measures = _measures(seen, [float(own.mean()) for own, _ in divergences])
    failed = [d for d in decisions if d.verdict == FAIL]
    if failed:
        worst = max(failed, key=lambda d: max(d.ratios))
        at = int(np.argmax(worst.ratios))
        probe = [o.probe for o in seen if o.probe.kind == worst.kind][at]
        message = (
            f"the root of the KL divergence is {worst.ratios[at]:.3g} times the reference's own "
            f"on probe {probe.name!r} (limit {worst.limit:g})"
        )
        return _fails(probe.name, message, measures, worst.ratios[at], worst.limit)
    flips = [(o, t) for o in seen if o.has_oracle for t in _flips(o, comparison.dtype)]
    if flips:
        o, t = flips[0]
        message = (
            f"on probe {o.probe.name!r} the best token after position {t} is "
            f"{int(o.actual[t].argmax())}, not {int(o.scores.best[t])}, beyond a tie"
        )
        return _fails(o.probe.name, message, measures, None, None, t)
    open_ones = [d for d in decisions if d.verdict == INCONCLUSIVE]
    if open_ones:
        return CheckResult(MEASURE, INCONCLUSIVE, undecided(open_ones), measures)
    reason = (
        f"KL {measures['kl']['mean']:.1e} ± {measures['kl']['standard_error']:.0e} nats; "
        f"top-1 {measures['top1']['mean']:.2%}; log-likelihood "
        f"{measures['log_likelihood_change']['mean']:+.1e} ± "
        f"{measures['log_likelihood_change']['standard_error']:.0e}"
    )
    return CheckResult(MEASURE, PASS, reason, measures)


def _divergences(o: Observation) -> tuple[np.ndarray, np.ndarray]:
    """(T,), (T,): KL divergence from the oracle, the candidate's and the reference's."""
    expected = o.scores.oracle
    p = softmax(expected)
    actual, twin = (kl_from(p, z, expected) for z in (o.scores.of(o.actual), o.scores.twin))
    return actual, twin


def _ratio(o: Observation, own: np.ndarray, twin: np.ndarray, dtype: str) -> float:
    """Root of the candidate's mean KL over the reference's; floored like any noise."""
    same = o.same_experts
    least = (FLOOR[dtype] * o.scores.spread) ** 2 / 2  # logits that are off by the floor everywhere
    if not same.any():
        return 0.0
    noise = max(float(twin[same].mean()), least)
    return math.sqrt(max(float(own[same].mean()), 0.0) / noise)


def _flips(o: Observation, dtype: str) -> list[int]:
    """Positions where the best tokens differ although the oracle's margin is beyond noise."""
    noise = np.maximum(o.scores.noise, FLOOR[dtype] * o.scores.peak)
    other = (o.actual.argmax(1) != o.scores.best) & o.same_experts
    return [int(t) for t in np.flatnonzero(other & (o.scores.margin > TIE * noise))]


def _measures(seen: list[Observation], divergences: list[float]) -> dict:
    """Mean and standard error over prompts of what users of other tools know."""
    same = [float((o.actual.argmax(1) == o.scores.best).mean()) for o in seen]
    longer = [o for o in seen if len(o.probe.tokens) > 1]
    change = [
        _likelihood(o, o.scores.of(o.actual)) - _likelihood(o, o.scores.oracle) for o in longer
    ]
    return {
        "prompts": len(seen),
        "kl": _summary(divergences),
        "top1": _summary(same),
        "log_likelihood_change": _summary(change),
    }


def _likelihood(o: Observation, scores: np.ndarray) -> float:
    return log_likelihood(scores, o.scores.following(o.probe.tokens))


def _summary(values: list[float]) -> dict[str, float]:
    known = len(values) > 1 and all(map(math.isfinite, values))
    error = stdev(values) / math.sqrt(len(values)) if known else 0.0
    return {"mean": fmean(values) if values else 0.0, "standard_error": error}


def _fails(probe, message, measures, ratio, limit, token=None) -> CheckResult:
    divergence = Divergence(
        MEASURE, probe, message, LOGITS.path, ratio=ratio, limit=limit, token=token
    )
    return CheckResult(MEASURE, FAIL, message, measures, divergence=divergence)
