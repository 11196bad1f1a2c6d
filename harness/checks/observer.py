"""Does watching change what is computed?"""

from __future__ import annotations

import numpy as np

from ..comparison import Comparison
from ..routes import answered, measured
from ..types import PASS, SKIP, CheckResult

ORDER = 85  # after the numbers: what it finds has no place


def run(comparison: Comparison) -> CheckResult:
    """Logits with every site watched, against those of the bare pass that serves users.

    Bit-identical where nothing is compiled. Where watching changes rounding, the change is
    measured and the bare pass is judged like the watched one.
    """
    name = "observer"
    if reason := comparison.candidate.limits.get("sites"):
        return CheckResult(name, SKIP, reason)
    probe = comparison.longest("random", "text")
    if probe is None:
        return CheckResult(name, SKIP, "no probe is long enough")
    seen = comparison.observation(probe)
    bare = comparison.bare(probe)
    if np.array_equal(bare, seen.actual, equal_nan=True):
        return CheckResult(name, PASS, "logits are bit-identical, watched or not", {"changed": 0})
    bare_pass = {"the pass that nobody watches": measured(comparison, seen, bare)}
    result = answered(comparison, name, "bare pass", bare_pass)
    changed = int((bare != seen.actual).sum())
    result.measures["changed"] = changed
    result.reason = f"watching changes {changed} of {bare.size} logits; {result.reason}"
    return result
