"""Is every column of the logits right, one vocabulary entry at a time?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..answers import undecided
from ..comparison import Comparison, Observation
from ..metrics import FLOOR, rms
from ..types import FAIL, INCONCLUSIVE, LOGITS, PASS, SKIP, CheckResult, Divergence

ORDER = 70
MEASURE = "head"
POOLED = "all"  # tokens of all probes together: one probe has too few for a column


def run(comparison: Comparison) -> CheckResult:
    """The worst column's error over its noise, taken over the tokens of all probes.

    One wrong row of the output matrix moves no measure that is pooled over the vocabulary. A
    column's noise counts as no less than the noise of all of them.
    """
    seen = [o for o in comparison.observations() if o.fits]
    if any(o.evidence.sketch for o in seen):
        return CheckResult(MEASURE, SKIP, "the golden holds a sketch of the logits, no columns")
    if not seen:
        return CheckResult(MEASURE, SKIP, "the logits have another shape than the reference's")

    def pooled(rows: Callable[[Observation], np.ndarray]) -> np.ndarray:
        """Root mean square over the tokens of all probes, tied ones left out."""
        total = np.zeros(seen[0].actual.shape[1])
        for o in seen:  # one by one: all of them would be as large as the logits of all probes
            for row in np.square(rows(o)[o.same_experts]):
                total += row
        return np.sqrt(total / max(1, sum(int(o.same_experts.sum()) for o in seen)))

    error = pooled(lambda o: o.actual - o.oracle)
    noise = pooled(lambda o: o.twin - o.oracle)
    scale = rms(pooled(lambda o: o.oracle))
    floor = max(rms(noise), FLOOR[comparison.dtype] * float(scale))
    ratios = error / np.maximum(noise, floor)
    column = int(np.argmax(np.where(np.isfinite(ratios), ratios, np.inf)))
    ratio = float(ratios[column])
    decision = comparison.decide(
        MEASURE, POOLED, [ratio], 1, site=LOGITS, has_oracle=all(o.has_oracle for o in seen)
    )
    measures = {"columns": ratios.size, "worst_column": column, "worst_ratio": ratio}
    if decision.verdict == FAIL:
        wrong = int((~(ratios <= decision.limit)).sum())
        message = (
            f"column {column} of the logits is {ratio:.3g} times the noise "
            f"(limit {decision.limit:g}); {wrong} of {ratios.size} columns are off"
        )
        divergence = Divergence(
            MEASURE, seen[0].probe.name, message, LOGITS.path, None,
            float(error[column] / scale), float(max(noise[column], floor) / scale), ratio,
            decision.limit,
        )  # fmt: skip
        return CheckResult(
            MEASURE, FAIL, message, {**measures, "wrong_columns": wrong}, divergence=divergence
        )
    if decision.verdict == INCONCLUSIVE:
        return CheckResult(MEASURE, INCONCLUSIVE, undecided([decision]), measures)
    reason = f"{ratios.size} columns; at most {ratio:.1f} x noise"
    return CheckResult(MEASURE, PASS, reason, measures)
