"""Does the same input give the same bits, whatever ran before it?"""

from __future__ import annotations

import numpy as np

from ..comparison import Comparison
from ..types import FAIL, LOGITS, PASS, SKIP, CheckResult, Divergence

ORDER = 120


def run(comparison: Comparison) -> CheckResult:
    """One probe, another one in between, and the first again: bit-identical logits."""
    name = "repeat"
    probe = comparison.longest("text", "random")
    other = next((p for p in comparison.probes if p != probe), None)
    if probe is None or other is None:
        return CheckResult(name, SKIP, "no probe is long enough")
    run = comparison.candidate.forward
    first, again = run(probe.tokens), run(probe.tokens)
    run(other.tokens)
    after = run(probe.tokens)
    for what, second in (("again", again), ("after another input", after)):
        if np.array_equal(first, second, equal_nan=True):
            continue
        changed = int((first != second).sum())
        largest = float(np.abs(first - second).max())
        message = (
            f"the same input {what}: {changed} of {first.size} logits differ, by {largest:.2g}"
        )
        divergence = Divergence(name, probe.name, message, LOGITS.path)
        measures = {"changed": changed, "largest": largest}
        return CheckResult(name, FAIL, message, measures, divergence=divergence)
    reason = "bit-identical when repeated, and after another input"
    return CheckResult(name, PASS, reason, {"changed": 0})
