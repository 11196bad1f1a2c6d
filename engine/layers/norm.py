"""RMSNorm and LayerNorm, with statistics in float32 whatever the dtype of the input."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from ..spec import NormSpec


class Norm(nn.Module):
    """x / rms(x) * (offset + weight), or (x - mean) / std * (offset + weight) + bias.

    The gain is added to its offset in float32, as transformers does: 1 + w in bfloat16 would
    lose the low bits of w. With `rows` the input ends in (rows, width), and each row has a gain of
    its own.
    """

    def __init__(self, spec: NormSpec, width: int, rows: int | None = None) -> None:
        super().__init__()
        self._spec = spec
        shape = (width,) if rows is None else (rows, width)
        self.weight = mx.ones(shape)
        if spec.bias:
            self.bias = mx.zeros(shape)

    def __call__(self, x: mx.array) -> mx.array:
        spec, weight, bias = self._spec, self.weight, self.get("bias")
        if not spec.offset and not spec.float32_gain and weight.ndim == 1:
            return self._normalised(x, weight, bias)
        gain = spec.offset + weight.astype(mx.float32)
        bias = None if bias is None else bias.astype(mx.float32)
        if weight.ndim == 1:
            return self._normalised(x.astype(mx.float32), gain, bias).astype(x.dtype)
        y = self._normalised(x.astype(mx.float32), None, None) * gain
        return (y if bias is None else y + bias).astype(x.dtype)

    def _normalised(self, x: mx.array, gain: mx.array | None, bias: mx.array | None) -> mx.array:
        if self._spec.kind == "layer":
            return mx.fast.layer_norm(x, gain, bias, self._spec.eps)
        return mx.fast.rms_norm(x, gain, self._spec.eps)
