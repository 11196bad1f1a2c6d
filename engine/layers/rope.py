"""Rotary position embedding with the scalings of transformers.

Frequencies are worked out in float64 and rounded once to float32; transformers works them out in
float32. Formulas: transformers `modeling_rope_utils`, by the names `rope_type` has there.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from ..errors import UnsupportedArchitecture
from ..spec import RopeSpec

TYPES = ("default", "linear", "dynamic", "llama3")


class Rope:
    """Rotate the first `dims` of the last axis of (B, H, T, D) by position.

    Raises UnsupportedArchitecture for a scaling type that is not in TYPES.
    """

    def __init__(self, spec: RopeSpec) -> None:
        if spec.type not in TYPES:
            raise UnsupportedArchitecture(
                f"rotary scaling {spec.type!r}: the engine has {', '.join(TYPES)}"
            )
        self.spec = spec
        self._periods = mx.array(periods(spec), dtype=mx.float32)

    def __call__(self, x: mx.array, offset: int | mx.array, length: int) -> mx.array:
        """`offset` is the position of the first token, or (B,) one per row; `length` is that of
        the whole sequence.

        Only "dynamic" looks at `length`: past the trained length its base grows with it. Rows of
        a padded batch would need a base each: UnsupportedArchitecture.
        """
        table = self._periods
        if self.spec.type == "dynamic" and length > (self.spec.original_length or length):
            if isinstance(offset, mx.array):
                raise UnsupportedArchitecture(
                    f"dynamic rotary scaling in a padded batch of {length} tokens: past "
                    f"{self.spec.original_length} every row needs a base of its own; run them alone"
                )
            table = mx.array(periods(self.spec, length), dtype=mx.float32)
        return mx.fast.rope(
            x, self.spec.dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=table
        )


def periods(spec: RopeSpec, length: int = 0) -> np.ndarray:
    """1 / inverse frequency of every pair, (dims/2,), float64, in tokens per radian."""
    exponents = np.arange(0, spec.dims, 2, dtype=np.float64) / spec.dims
    theta = spec.theta
    if spec.type == "dynamic" and spec.original_length:
        stretch = max(length, spec.original_length) / spec.original_length
        growth = spec.factor * stretch - (spec.factor - 1)
        theta *= growth ** (spec.dims / (spec.dims - 2))
    table = theta**exponents
    if spec.type == "linear":
        return table * spec.factor
    if spec.type == "llama3":
        assert spec.original_length is not None
        wavelength = 2 * math.pi * table
        low, high = spec.low_freq_factor, spec.high_freq_factor
        smooth = (spec.original_length / wavelength - low) / (high - low)
        smooth = np.clip(smooth, 0.0, 1.0)
        return 1.0 / ((1 - smooth) / (table * spec.factor) + smooth / table)
    return table
