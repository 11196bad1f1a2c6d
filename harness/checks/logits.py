"""Are the logits the reference's, through the whole model and from the head alone?"""

from __future__ import annotations

from ..answers import site_result
from ..comparison import Comparison
from ..types import CheckResult

ORDER = 60


def run(comparison: Comparison) -> CheckResult:
    """The last norm and the logits, isolated (fed the last block's output) and propagated."""
    return site_result(comparison, "logits", ("norm", "logits"))
