"""What every report says alike: the verdict in words, sites, ratios, and where limits come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..types import ERROR, FAIL, INCONCLUSIVE, PASS, Site, SiteDiff

WORDS = {
    PASS: "PASS: parity holds",
    FAIL: "FAIL: parity does not hold",
    ERROR: "ERROR: the comparison could not be run",
    INCONCLUSIVE: "INCONCLUSIVE: nothing is shown to be wrong, nor that nothing is",
}


def worst_of(diffs: Iterable[SiteDiff]) -> list[SiteDiff]:
    """Of each site the probe nearest to its limit, in the order of the sites."""
    found: dict[Site, SiteDiff] = {}
    for diff in diffs:
        if diff.site not in found or not nearness_of(found[diff.site]) >= nearness_of(diff):
            found[diff.site] = diff
    return list(found.values())


def nearness_of(diff: SiteDiff) -> float:
    """The ratio in units of its limit."""
    return diff.ratio / diff.limit


def name_of(site: Site) -> str:
    """ "block 3", "embedding", or what a module inside a block is called there."""
    if site.kind == "module":
        return site.part
    return f"block {site.block}" if site.block is not None else site.kind


def number(ratio: float) -> str:
    """A ratio in few characters."""
    if not math.isfinite(ratio):
        return "inf"
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.3g}"


def limits_of(calibration: Mapping[str, Any]) -> Iterator[str]:
    """Where the limits come from, and what they bound; no lines where nothing was judged."""
    if not calibration:
        return
    device, runs, share = (calibration[key] for key in ("device_class", "runs", "share"))
    if not calibration["calibrated"]:
        why = (
            "of another class" if share else f"from {runs} harmless runs, too few to bound a share"
        )
        yield f"limits: uncalibrated for {device} ({why}); harness calibrate measures them"
        return
    confidence = calibration["confidence"]
    yield (
        f"limits: calibrated for {device}, each above {share:.0%} of harmless runs at "
        f"{confidence:.0%} confidence ({runs} or more)"
    )
    if calibration["wider"] > 1:
        yield (
            f"and {calibration['wider']:.1f} times wider: in products of "
            f"{calibration['longest_product']:,} terms rounding grows so much more here"
        )
