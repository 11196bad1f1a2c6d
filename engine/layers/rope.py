"""Rotary position embedding with the scalings of transformers.

Frequencies are worked out in float64 and rounded once to float32; transformers works them out in
float32. Formulas: transformers `modeling_rope_utils`, by the names `rope_type` has there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..errors import UnsupportedArchitecture
from ..spec import RopeSpec

TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
PAIRS = ("halves", "neighbours", "neighbours to halves")


class Rope:
    """Rotate the first `dims` of the last axis of (B, H, T, D) by position.

    Raises UnsupportedArchitecture for a scaling or an order of pairs that is not known here.
    """

    def __init__(self, spec: RopeSpec) -> None:
        for what, value, known in (("scaling", spec.type, TYPES), ("pairs", spec.pairs, PAIRS)):
            if value not in known:
                raise UnsupportedArchitecture(
                    f"rotary {what} {value!r}: the engine has {', '.join(known)}"
                )
        self.spec = spec
        self._periods = mx.array(periods(spec), dtype=mx.float32)

    def __call__(
        self, x: mx.array, offset: int | mx.array, length: int | Sequence[int]
    ) -> mx.array:
        """`offset` is the position of the first token and `length` that of the whole sequence, or
        both are one per row.

        Only "dynamic" and "longrope" look at `length`: past the trained length they have other
        periods. Rows that need periods of their own are rotated one by one.
        """
        spec = self.spec
        if not isinstance(length, int):
            if len({era(spec, n) for n in length}) > 1:
                assert isinstance(offset, mx.array)
                return mx.concatenate(
                    [self(x[i : i + 1], offset[i : i + 1], n) for i, n in enumerate(length)]
                )
            length = length[0]
        table = self._periods
        if era(spec, length) != era(spec, 0):
            table = mx.array(periods(spec, length), dtype=mx.float32)
        if spec.pairs == "neighbours to halves":
            x = _as_halves(x, spec.dims)
        dtype = x.dtype
        if spec.magnitude != 1.0:  # what is turned and multiplied is rounded once
            x = x.astype(mx.float32)
        y = mx.fast.rope(
            x, spec.dims, traditional=spec.pairs == "neighbours", base=None, scale=1.0,
            offset=offset, freqs=table,
        )  # fmt: skip
        if spec.magnitude == 1.0:
            return y
        turned = y[..., : spec.dims] * spec.magnitude
        return mx.concatenate([turned, y[..., spec.dims :]], axis=-1).astype(dtype)


def era(spec: RopeSpec, length: int) -> int:
    """Lengths that give the same number have the same periods."""
    original = spec.original_length
    if original is None or spec.type not in ("dynamic", "longrope"):
        return 0
    return max(length, original) if spec.type == "dynamic" else int(length > original)


def _as_halves(x: mx.array, dims: int) -> mx.array:
    """Features 0, 2, 4, ... in front of 1, 3, 5, ..., the ones that are not rotated behind."""
    pairs = x[..., :dims].reshape(*x.shape[:-1], dims // 2, 2).swapaxes(-1, -2)
    return mx.concatenate([pairs.reshape(*x.shape[:-1], dims), x[..., dims:]], axis=-1)


def periods(spec: RopeSpec, length: int = 0) -> np.ndarray:
    """1 / inverse frequency of every pair, (dims/2,), float64, in tokens per radian."""
    exponents = np.arange(0, spec.dims, 2, dtype=np.float64) / spec.dims
    original, theta = spec.original_length or 0, spec.theta
    if spec.type == "dynamic" and original:
        stretch = max(length, original) / original
        growth = spec.factor * stretch - (spec.factor - 1)
        theta *= growth ** (spec.dims / (spec.dims - 2))
    table = theta**exponents
    if spec.type == "linear":
        return table * spec.factor
    if spec.type == "longrope":
        return table * np.array(spec.long_factors if length > original else spec.short_factors)
    if spec.type == "llama3":
        low, high = spec.low_freq_factor, spec.high_freq_factor
        smooth = (original / (2 * math.pi * table) - low) / (high - low)
        return _between(table, spec.factor, np.clip(smooth, 0.0, 1.0))
    if spec.type == "yarn":
        return _between(table, spec.factor, 1.0 - _ramp(spec))
    return table


def _between(table: np.ndarray, factor: float, kept: np.ndarray) -> np.ndarray:
    """Periods of which a share is `kept` and the rest stretched, by frequency."""
    return 1.0 / ((1.0 - kept) / (table * factor) + kept / table)


def _ramp(spec: RopeSpec) -> np.ndarray:
    """YaRN's share of stretching, (dims/2,): 0 for pairs that turn `beta_fast` times or more over
    the original length, 1 for those that turn `beta_slow` times or less, linear between."""

    def pair(turns: float) -> float:
        assert spec.original_length is not None
        length = spec.original_length / (turns * 2 * math.pi)
        return spec.dims * math.log(length) / (2 * math.log(spec.theta))

    low, high = pair(spec.beta_fast), pair(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dims - 1)
    if low == high:
        high += 0.001
    return np.clip((np.arange(spec.dims // 2) - low) / (high - low), 0.0, 1.0)
