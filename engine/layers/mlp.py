"""The feed-forward part of a block, and the activations by the names transformers gives them."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
from mlx import nn

from ..errors import UnsupportedArchitecture
from ..spec import MLPSpec
from . import Tap

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_fast": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "quick_gelu": nn.gelu_fast_approx,  # x * sigmoid(1.702 x)
    "relu": nn.relu,
    "relu2": nn.relu2,
}


def activation(name: str) -> Callable[[mx.array], mx.array]:
    """An activation by its name in transformers; UnsupportedArchitecture lists the known ones."""
    if name not in ACTIVATIONS:
        raise UnsupportedArchitecture(
            f"activation {name!r}: the engine has {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


class MLP(nn.Module):
    """(B, T, C) -> (B, T, C) through a width of F."""

    def __init__(self, spec: MLPSpec, width: int) -> None:
        super().__init__()
        self._activation, self._gated = activation(spec.activation), spec.gated
        if spec.gated:
            self.gate = nn.Linear(width, spec.width, bias=spec.bias)
        self.up = nn.Linear(width, spec.width, bias=spec.bias)
        self.down = nn.Linear(spec.width, width, bias=spec.bias)

    def __call__(self, x: mx.array, tap: Tap) -> mx.array:
        if self._gated:
            gate, up = self._gate_up(x, tap)
            x = self._activation(gate) * up
        else:
            x = self._activation(tap("up", self.up(x)))
        return tap("down", self.down(x))

    def _gate_up(self, x: mx.array, tap: Tap) -> tuple[mx.array, mx.array]:
        """(B, T, C) -> (B, T, F) twice"""
        return tap("gate", self.gate(x)), tap("up", self.up(x))
