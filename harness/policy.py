"""When is a difference a defect? The limits, in one table, and the rule that applies them.

A ratio is the candidate's error over the reference's own rounding error at the same site, both
against the float64 oracle. The limits are bounds on harmless ratios; where each comes from stands
beside it, and docs/METHOD.md shows the measurement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .metrics import FLOOR
from .types import FAIL, INCONCLUSIVE, ISOLATED, PASS, PROPAGATED


@dataclass(frozen=True)
class Limit:
    """The largest ratio that still passes, and where it comes from."""

    ratio: float
    provenance: str


_BENIGN = "python benchmarks/benign_ratios.py"
LIMITS: dict[tuple[str, str], Limit] = {
    (ISOLATED, "float32"): Limit(6.0, _BENIGN),
    (ISOLATED, "bfloat16"): Limit(4.0, _BENIGN),
    (ISOLATED, "float16"): Limit(4.0, _BENIGN),
    (PROPAGATED, "float32"): Limit(6.0, _BENIGN),
    (PROPAGATED, "bfloat16"): Limit(4.0, _BENIGN),
    (PROPAGATED, "float16"): Limit(4.0, _BENIGN),
}

# A greedy token may differ where the margin between the two best is at most so many times the
# reference's own rms error at that position: a candidate within its limit can turn that.
TIE = 16.0


def limit(mode: str, dtype: str) -> float:
    """The largest harmless ratio of a site in one mode at one dtype."""
    return LIMITS[mode, dtype].ratio


def effective_noise(noise: float, dtype: str) -> float:
    """Noise, but never less than half a unit of roundoff of the dtype."""
    return max(noise, FLOOR[dtype])


def judge(error: float, noise: float, allowed: float, has_oracle: bool = True) -> tuple[float, str]:
    """Ratio and verdict of one site. NaN never passes.

    Without an oracle the noise is not known, so that only what is not finite can be judged.
    """
    ratio = error / noise
    if not has_oracle and math.isfinite(ratio):
        return ratio, INCONCLUSIVE
    return ratio, PASS if ratio <= allowed else FAIL
