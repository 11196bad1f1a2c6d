"""Does a packed cache give back the keys and values that it was given, to within a step?

A group of numbers that is kept in b bits has a grid of 2^b points over its range, so that none can
be further from its place than one step of range / (2^b - 1): half a step, and up to as much again
where the grid is shifted to have zero on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.weights.quantised import Packing

from ..comparison import Comparison
from ..types import FAIL, PASS, SKIP, CheckResult, Divergence

ORDER = 105
NAME = "kv_cache"
# Rounding of scale, bias and sum to the dtype, of the largest number of a group.
EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def applies(comparison: Comparison) -> bool:
    """Of candidates that keep keys and values packed."""
    return getattr(comparison.candidate, "packing", None) is not None


def run(comparison: Comparison) -> CheckResult:
    """Keys and values of every block on the longest probe, in steps of their own groups."""
    probe = comparison.longest("windows", "random")
    if probe is None:
        return CheckResult(NAME, SKIP, "no probe is long enough")
    candidate: Any = comparison.candidate
    worst, failed = 0.0, []
    packing = candidate.packing
    for kept in candidate.packed(probe.tokens)[1]:
        off = steps_off(kept.given, kept.found, packing, EPS[comparison.dtype])
        worst = max(worst, off)
        if not off <= 1:
            failed.append((kept, off))
    measures = {"steps": worst, "bits": packing.bits, "group_size": packing.group_size}
    shape = f"{packing.bits} bits, groups of {packing.group_size}"
    if failed:
        kept, off = failed[0]
        message = (
            f"block {kept.block}: {kept.name} come back {off:.3g} steps of {shape} from where "
            f"they were, and one is the most ({len(failed)} of keys and values of all blocks)"
        )
        divergence = Divergence(NAME, probe.name, message, block=kept.block, ratio=off, limit=1.0)
        return CheckResult(NAME, FAIL, message, measures, divergence=divergence)
    reason = f"keys and values come back within {worst:.2f} steps of {shape}; 1 is the most"
    return CheckResult(NAME, PASS, reason, measures)


def steps_off(given: np.ndarray, found: np.ndarray, packing: Packing, eps: float) -> float:
    """The largest distance of numbers (..., D) from where they were, in steps of their groups.

    Infinite where something is not finite or has another shape.
    """
    if given.shape != found.shape:
        return float("inf")
    groups = given.reshape(-1, packing.group_size).astype(np.float64)
    back = found.reshape(groups.shape).astype(np.float64)
    steps = np.ptp(groups, axis=1) / (2**packing.bits - 1)
    allowed = steps + 2 * eps * np.abs(groups).max(axis=1)
    off = np.abs(back - groups).max(axis=1)
    ratios = np.divide(off, allowed, out=np.where(off > 0, np.inf, 0.0), where=allowed > 0)
    return float(np.nan_to_num(ratios, nan=np.inf).max())
