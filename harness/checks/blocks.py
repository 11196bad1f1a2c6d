"""Does every block compute what the reference's does, on the same input and along the way?"""

from __future__ import annotations

from ..answers import site_result
from ..comparison import Comparison
from ..types import FAIL, SKIP, CheckResult

ORDER = 50


def run(comparison: Comparison) -> CheckResult:
    """The embedding and every block, isolated and propagated; with depth "module", inside too."""
    result = site_result(comparison, "blocks", ("embedding", "block"))
    if comparison.depth == "module" and result.verdict != SKIP:
        off = _inside(comparison, result.measures.get("failed_blocks", []))
        if off:
            result.reason = f"{result.reason}; off inside blocks that hold: {', '.join(off[:4])}"
        result.measures["modules_off"] = off
    return result


def _inside(comparison: Comparison, failed: list[int]) -> list[str]:
    """Measure the modules of every block; name those off in blocks that are right as a whole."""
    probe = comparison.longest("text", "random")
    evidence = comparison.observation(probe) if probe else None
    if probe is None or evidence is None:
        return []
    blocks = {m.site.block for m in evidence.measures if m.site.block is not None}
    diffs = [d for block in sorted(blocks) for d in comparison.modules(probe, block)]
    return [d.site.path for d in diffs if d.verdict == FAIL and d.site.block not in failed]
