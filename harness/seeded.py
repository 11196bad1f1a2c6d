"""Numbers that any program makes alike, bit for bit: inputs of blocks, and the signs of a sketch.

A counter goes through a 32-bit integer hash; nothing depends on a library's generator.
docs/TRACE_FORMAT.md holds the same in words, for programs that make the inputs themselves.
"""

from __future__ import annotations

import math

import numpy as np

EXPONENTS = range(-126, 128)  # those of float32
_UNIFORM = 1 / math.sqrt(3)  # rms of what is uniform between -1 and 1


def block_input(index: int, length: int, width: int, exponent: int) -> np.ndarray:
    """(length, width) float32: what enters block `index` (the last norm, where it is their number).

    Odd multiples of 2^(exponent - 8) between -2^exponent and 2^exponent, each as likely: exact in
    float32, bfloat16 and float16 alike. Raises ValueError for an exponent that is not in EXPONENTS.
    """
    if exponent not in EXPONENTS:
        raise ValueError(f"exponent {exponent} is none of float32")
    odd = 2 * (_hash(index, length * width) >> np.uint32(24)).astype(np.int64) - 255
    return np.ldexp(odd.astype(np.float32), exponent - 8).reshape(length, width)


def exponent_for(array: np.ndarray) -> int:
    """The exponent whose inputs are nearest in size to an array; 0 for one that is all zero."""
    size = float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0
    if not (math.isfinite(size) and size > 0):
        return 0
    # float16 holds odd multiples of 2^-24 and no values from 2^16 on.
    return min(max(round(math.log2(size / _UNIFORM)), -16), 15)


def signs(seed: int, count: int) -> np.ndarray:
    """(count,) of -1.0 and 1.0, float64, each as likely."""
    return 1.0 - 2.0 * (_hash(seed, count) >> np.uint32(31)).astype(np.float64)


def _hash(seed: int, count: int) -> np.ndarray:
    """(count,) uint32: counters from 0, mixed with a seed."""
    h = np.arange(count, dtype=np.uint32)
    with np.errstate(over="ignore"):
        h = h * np.uint32(0x9E3779B1) + np.uint32((seed * 0x85EBCA77) & 0xFFFFFFFF)
        for _ in range(2):
            h = (h ^ (h >> np.uint32(16))) * np.uint32(0x45D9F3B)
    return h ^ (h >> np.uint32(16))
