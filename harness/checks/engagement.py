"""Does the candidate compute at the dtype it claims?"""

from __future__ import annotations

import math
from statistics import fmean

from ..comparison import Comparison
from ..metrics import FLOOR
from ..policy import ENGAGED
from ..types import ERROR, ISOLATED, PASS, SKIP, CheckResult

ORDER = 30


def run(comparison: Comparison) -> CheckResult:
    """ERROR where errors are far below what rounding to the dtype makes: no pass can be earned so.

    Asked of bfloat16 and float16: a float32 candidate that computes in float64 is a better one.
    Sites where the reference itself hardly rounds say nothing.
    """
    name, dtype = "engagement", comparison.dtype
    if dtype == "float32":
        return CheckResult(name, SKIP, "asked of bfloat16 and float16")
    ratios = [
        measure.ratio
        for seen in comparison.observations()
        if seen.has_oracle
        for measure in seen.measures
        if measure.noise > 2 * FLOOR[dtype] and measure.mode == _mode(comparison)
    ]
    if not ratios:
        return CheckResult(name, SKIP, "no site where the reference's rounding shows")
    mean = math.exp(fmean(math.log(max(ratio, 1e-9)) for ratio in ratios if ratio < math.inf))
    least = ENGAGED * comparison.limits.low.get(dtype, 1.0)
    measures = {"mean_ratio": mean, "limit": least, "sites": len(ratios)}
    if mean < least:
        reason = (
            f"errors are {mean:.2g} times those of {dtype}: the candidate computes at a higher "
            f"precision than it claims (a {dtype} run is at {least:.2g} or more)"
        )
        return CheckResult(name, ERROR, reason, measures)
    return CheckResult(name, PASS, f"errors are {mean:.2g} times the reference's", measures)


def _mode(comparison: Comparison) -> str:
    from ..types import PROPAGATED

    return PROPAGATED if "sites" in comparison.candidate.limits else ISOLATED
