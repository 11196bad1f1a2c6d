"""Logits that were computed by another route (in pieces, in a batch), judged against one pass.

What the oracle gives in one pass is right for every route, so that each is judged like any logits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .answers import undecided
from .comparison import Comparison, Measure, Observation
from .metrics import first_bad_token, position_rms, relative_error, rms
from .policy import effective_noise
from .types import (
    FAIL,
    INCONCLUSIVE,
    LOGITS,
    PASS,
    PROPAGATED,
    CheckResult,
    Divergence,
)

ROUTE = "route"  # the measure's name in the table of limits


def measured(comparison: Comparison, seen: Observation, actual: np.ndarray) -> Measure:
    """The error of logits (T, V) of a probe, in units of the reference's noise in one pass."""
    actual = seen.view(actual)
    same, limit = seen.same_experts, _limit(comparison, seen)
    noise = effective_noise(relative_error(seen.twin[same], seen.oracle[same]), comparison.dtype)
    kept = np.ones(len(same), bool)
    if seen.close is not None and actual.shape == seen.oracle.shape:
        # Another route may take other experts where the choice is within noise; all tokens after
        # such a one attend to it. Those before it count, off or not.
        off = position_rms(actual, seen.oracle) > limit * noise * rms(seen.oracle)
        kept = ~np.logical_or.accumulate(off & seen.close)
    if kept.all():
        error = relative_error(actual, seen.oracle)
        token = first_bad_token(actual, seen.oracle, noise, limit)
    else:
        error, token = relative_error(actual[kept], seen.oracle[kept]), None
    ties = int((~kept).sum())
    return Measure(LOGITS, PROPAGATED, seen.probe, error, noise, None, token, ties)


def answered(
    comparison: Comparison, name: str, what: str, routes: Mapping[str, Measure]
) -> CheckResult:
    """The answer of a check from what every route measured; the worst one is its divergence.

    `what` is what they are called together.
    """
    decisions, measures = {}, {}
    for route, m in routes.items():
        decisions[route] = comparison.decide(
            ROUTE, m.probe.kind, [m.ratio], len(routes), site=LOGITS,
            has_oracle=comparison.observation(m.probe).has_oracle,
        )  # fmt: skip
        measures[route] = {"error": m.error, "noise": m.noise, "ratio": m.ratio}
    worst = max(routes, key=lambda route: _size(routes[route]))
    failed = [route for route, decision in decisions.items() if decision.verdict == FAIL]
    if failed:
        route = max(failed, key=lambda route: _size(routes[route]))
        m, allowed = routes[route], decisions[route].limit
        size = f"{m.ratio:.3g} times the noise" if math.isfinite(m.ratio) else "not finite"
        message = f"{route}: logits are {size} (limit {allowed:g})"
        message += "" if m.token is None else f", from token {m.token} on"
        divergence = Divergence(
            name, m.probe.name, message, LOGITS.path, None, m.error, m.noise, m.ratio, allowed,
            m.token,
        )  # fmt: skip
        return CheckResult(name, FAIL, message, measures, divergence=divergence)
    open_ones = [d for d in decisions.values() if d.verdict == INCONCLUSIVE]
    if open_ones:
        return CheckResult(name, INCONCLUSIVE, undecided(open_ones), measures)
    reason = f"{len(routes)} {what}; at most {routes[worst].ratio:.1f} x noise"
    return CheckResult(name, PASS, reason, measures)


def _limit(comparison: Comparison, seen: Observation) -> float:
    return comparison.limits.row(ROUTE, comparison.dtype, seen.probe.kind).limit


def _size(measure: Measure) -> float:
    return measure.ratio if not math.isnan(measure.ratio) else math.inf
