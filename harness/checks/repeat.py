"""Does the same input give the same bits, whatever ran before it?"""

from __future__ import annotations

import numpy as np

from ..comparison import Comparison
from ..types import FAIL, LOGITS, PASS, SKIP, CheckResult, Divergence

ORDER = 120


def run(comparison: Comparison) -> CheckResult:
    """One probe twice, and again after others: bit-identical logits.

    The first time is that of the observer's check, where it was asked. Before the last one run the
    shortest and the longest of the others, in this order: what they leave behind, as a buffer or a
    table that has grown, would show.
    """
    name = "repeat"
    probe = comparison.longest("random", "text")
    others = sorted((p for p in comparison.probes if p != probe), key=lambda p: len(p.tokens))
    if probe is None or not others:
        return CheckResult(name, SKIP, "no probe is long enough")
    run = comparison.candidate.forward
    first, again = comparison.bare(probe), run(probe.tokens)
    for other in (others[0], others[-1]):
        run(other.tokens)
    after = run(probe.tokens)
    for what, second in (("again", again), ("after another input", after)):
        if np.array_equal(first, second, equal_nan=True):
            continue
        differs = (first != second) & ~(np.isnan(first) & np.isnan(second))
        changed = int(differs.sum())
        largest = float(np.abs(first[differs] - second[differs]).max())
        message = (
            f"the same input {what}: {changed} of {first.size} logits differ, by {largest:.2g}"
        )
        divergence = Divergence(name, probe.name, message, LOGITS.path)
        measures = {"changed": changed, "largest": largest}
        return CheckResult(name, FAIL, message, measures, divergence=divergence)
    reason = "bit-identical when repeated, and after another input"
    return CheckResult(name, PASS, reason, {"changed": 0})
