"""Which tokens are off in which layer: of one probe, what every site measured, token by token.

Knows nothing of limits but the one it passes on; `comparison.py` has measured everything before.
"""

from __future__ import annotations

from collections.abc import Sequence

from .answers import MODES, first
from .comparison import Comparison, Observation
from .types import FAIL, SiteDiff, TokenMap


def token_maps(comparison: Comparison, diffs: Sequence[SiteDiff]) -> list[TokenMap]:
    """A map per mode, of the probe that shows the first failure best, or of the longest."""
    seen = _shown(comparison, diffs)
    if seen is None:
        return []
    found = []
    for mode in MODES:
        rows = {m.site: m.each for m in seen.measures if m.mode == mode and m.each}
        if rows:
            limit = comparison.limits.row(mode, comparison.dtype, seen.probe.kind).limit
            found.append(TokenMap(seen.probe, mode, comparison.dtype, limit, rows))
    return found


def _shown(comparison: Comparison, diffs: Sequence[SiteDiff]) -> Observation | None:
    failed = [diff for diff in diffs if diff.verdict == FAIL]
    if failed:
        probe = first(failed).probe
        return next(seen for seen in comparison.observed if seen.probe.name == probe)
    return max(comparison.observed, key=lambda seen: len(seen.probe.tokens), default=None)
