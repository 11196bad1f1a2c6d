"""Is a float32 product on this device a float32 product?"""

from __future__ import annotations

from ..comparison import Comparison
from ..environment import PRODUCT_LIMIT, product_error
from ..types import ERROR, PASS, SKIP, CheckResult

ORDER = 0


def run(comparison: Comparison) -> CheckResult:
    """ERROR where TF32 or the like is on: no float32 number would mean anything."""
    if comparison.dtype != "float32":
        return CheckResult("environment", SKIP, "asked once, at float32")
    error = product_error()
    measures = {"product_error": error, "limit": PRODUCT_LIMIT}
    if error > PRODUCT_LIMIT:
        reason = (
            f"a float32 product is off by {error:.1e} (limit {PRODUCT_LIMIT:.0e}): TF32 is on; "
            "set MLX_ENABLE_TF32=0 before mlx is imported"
        )
        return CheckResult("environment", ERROR, reason, measures)
    return CheckResult("environment", PASS, f"float32 product off by {error:.1e}", measures)
