"""MXFP4: matrices whose weights are four bits each, 32 of them sharing a power of two.

A checkpoint keeps such a matrix as two tensors of bytes, NAME_blocks and NAME_scales; here they
become the one tensor NAME again. Every product of a four-bit number and a scale is a bfloat16, so
that nothing is rounded. Source: OCP Microscaling Formats v1.0, sections 5.3 and 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from ..errors import CorruptWeights

_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = np.array([*_HALF, *(-x for x in _HALF)], np.float32)  # sign, two bits, one bit
_BIAS = 127


def unpacked(tensors: Mapping[str, mx.array], where: str) -> dict[str, mx.array]:
    """`tensors` with every pair of blocks and scales in place of which NAME stands, still unread.

    Raises CorruptWeights for one without the other, or shapes that do not belong together. What
    is not of bytes is left alone.
    """
    found = dict(tensors)
    for name, blocks in tensors.items():
        if not name.endswith("_blocks") or blocks.dtype != mx.uint8:
            continue
        base = name.removesuffix("_blocks")
        scales = found.pop(f"{base}_scales", None)
        if scales is None or scales.dtype != mx.uint8 or scales.shape != blocks.shape[:-1]:
            shown = "missing" if scales is None else f"{scales.dtype} {tuple(scales.shape)}"
            raise CorruptWeights(
                f"tensor {base + '_scales'!r} is {shown} in {where}, {name!r} has shape "
                f"{tuple(blocks.shape)}: fetch the weights again"
            )
        del found[name]
        found[base] = dequantised(blocks, scales)
    return found


def dequantised(blocks: mx.array, scales: mx.array) -> mx.array:
    """Blocks (E, out, G, 16), two numbers a byte, and scales (E, out, G) -> (E, in, out), bfloat16.

    The lower four bits come first. A scale of 255, "not a number", gives an infinity, as in
    transformers.
    """
    numbers = mx.array(_NUMBERS)
    pairs = mx.stack([numbers[blocks & 15], numbers[blocks >> 4]], axis=-1)
    with np.errstate(over="ignore"):
        powers = mx.array(np.exp2(np.arange(256) - _BIAS).astype(np.float32))
    values = pairs.flatten(-2) * powers[scales][..., None]  # (E, out, G, 32)
    return values.flatten(-2).swapaxes(-1, -2).astype(mx.bfloat16)
