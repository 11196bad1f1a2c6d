"""RMSNorm and LayerNorm, with statistics in float32 whatever the dtype of the input."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from ..spec import NormSpec


class Norm(nn.Module):
    """x / rms(x) * (offset + weight), or (x - mean) / std * weight + bias.

    The gain is added to its offset in float32, as transformers does: 1 + w in bfloat16 would
    lose the low bits of w.
    """

    def __init__(self, spec: NormSpec, width: int) -> None:
        super().__init__()
        self._spec = spec
        self.weight = mx.ones((width,))
        if spec.bias:
            self.bias = mx.zeros((width,))

    def __call__(self, x: mx.array) -> mx.array:
        spec = self._spec
        if spec.kind == "layer":
            return mx.fast.layer_norm(x, self.weight, self.get("bias"), spec.eps)
        if spec.offset:
            gain = spec.offset + self.weight.astype(mx.float32)
            return mx.fast.rms_norm(x.astype(mx.float32), gain, spec.eps).astype(x.dtype)
        return mx.fast.rms_norm(x, self.weight, spec.eps)
