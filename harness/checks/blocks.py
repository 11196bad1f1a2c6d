"""Does every block compute what the reference's does, on the same input and along the way?"""

from __future__ import annotations

from ..comparison import Comparison, site_result
from ..types import CheckResult

ORDER = 3


def run(comparison: Comparison) -> CheckResult:
    """The embedding and every block, isolated and propagated."""
    return site_result(comparison, "blocks", ("embedding", "block"))
