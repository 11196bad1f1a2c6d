"""When is a difference a defect? The one rule that every comparison of numbers goes through.

A ratio is the candidate's error over the reference's own rounding error at the same site, both
against the float64 oracle. Prompts are the statistical unit: ratios of the prompts of one kind are
a sample, and the mean of their logarithms is what is judged, against limits that `harness
calibrate` measured on harmless runs (`limits.py`). docs/METHOD.md explains and shows the figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, variance

from .limits import Row
from .metrics import FLOOR
from .types import FAIL, INCONCLUSIVE, PASS, Decision, Site

# Risk, of a whole rung, that chance between prompts alone makes a wrong answer. It is shared out
# evenly over everything judged there (Bonferroni).
ALPHA = 0.05

# Ratios below this count as this: a candidate may round less than the reference without merit.
LEAST = 0.5

# How many prompts the calibrated scatter is worth beside a sample's own, where a pass is at stake.
# A defect may scatter more than harmless rounding does, so that the sample has to be heard.
PRIOR = 4

# A greedy token, or an expert, may differ where the margin between the two best is at most so many
# times the reference's own rms error at that position: a candidate within its limit can turn that.
TIE = 16.0

# A candidate whose mean ratio is below this share of the smallest benign one does not compute at
# the dtype it claims: float32 behind a bfloat16 label is at a hundredth.
ENGAGED = 0.25


def decide(
    ratios: Sequence[float],
    row: Row,
    tests: int,
    *,
    measure: str,
    dtype: str,
    kind: str,
    site: Site | None = None,
    has_oracle: bool = True,
) -> Decision:
    """Judge one measure at one site on the prompts of one kind, one of `tests` judged together.

    FAIL when the mean log-ratio lies above the limit beyond chance, or when one prompt alone does;
    PASS when the mean lies below beyond chance; else INCONCLUSIVE. What is not finite always
    fails. Without an oracle the noise is unknown, and nothing finite can be judged.
    """
    n = len(ratios)

    def decision(low: float, high: float, verdict: str, more: int | None = None) -> Decision:
        return Decision(
            measure, dtype, kind, site, tuple(ratios), tests, low, high, row.limit, verdict, more
        )

    if not all(math.isfinite(ratio) for ratio in ratios):
        return decision(math.inf, math.inf, FAIL)
    logs = [math.log(max(ratio, LEAST)) for ratio in ratios]
    bound, mean = math.log(row.limit), fmean(logs)
    z = _quantile(tests)
    own = _scatter(logs, row.scatter)
    low = mean - z * row.scatter / math.sqrt(n)
    high = mean + z * own / math.sqrt(n)
    if not has_oracle:
        return decision(math.exp(low), math.exp(high), INCONCLUSIVE)
    alone = max(logs) - _quantile(tests * n) * row.scatter
    if max(low, alone) > bound:
        return decision(math.exp(low), math.exp(high), FAIL)
    if high <= bound:
        return decision(math.exp(low), math.exp(high), PASS)
    distance = max(abs(mean - bound), 1e-3)
    more = max(1, math.ceil((z * max(own, row.scatter) / distance) ** 2) - n)
    return decision(math.exp(low), math.exp(high), INCONCLUSIVE, more)


def upper_bound(ratios: Sequence[float], scatter: float, tests: int) -> float:
    """The smallest limit under which these ratios would pass: a benign run's score."""
    logs = [math.log(max(ratio, LEAST)) for ratio in ratios]
    own = _scatter(logs, scatter)
    return math.exp(fmean(logs) + _quantile(tests) * own / math.sqrt(len(logs)))


def effective_noise(noise: float, dtype: str) -> float:
    """Noise, but never less than half a unit of roundoff of the dtype."""
    return max(noise, FLOOR[dtype])


def _scatter(logs: Sequence[float], calibrated: float) -> float:
    """The calibrated standard deviation, moved towards the sample's own as prompts are added."""
    degrees = len(logs) - 1
    own = variance(logs) if degrees else 0.0
    return math.sqrt((PRIOR * calibrated**2 + degrees * own) / (PRIOR + degrees))


def _quantile(tests: int) -> float:
    return NormalDist().inv_cdf(1 - ALPHA / (2 * max(tests, 1)))
