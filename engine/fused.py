"""Blocks for decoding: products of one input are one product, and matrices lie as they are used.

q, k and v become one product, gate and up another. A fused block is another view of the same
weights: its matrices are the parts' rows one after the other, and the parts' own become slices of
them, so that no weight is in memory twice. Only what is alike can be fused: plain layers, or layers
packed in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from .layers import Tap, no_tap
from .layers.attention import Attention
from .layers.mlp import MLP
from .layers.packed import PackedLinear


def fused(block: Any) -> Any:
    """A block that computes the same from the same modules, those that could be fused apart."""
    made = copy.copy(block)
    made.attn = turned(_attention(block.attn))
    made.mlp = turned(_mlp(block.mlp))
    return made


def turned(module: Any) -> Any:
    """A copy of a module whose plain linear layers hold their matrices transposed."""
    made = copy.copy(module)
    for name, part in module.items():
        if type(part) is nn.Linear:
            made[name] = Turned(part)
    return made


class Turned(nn.Module):
    """A linear layer's own matrix as (in, out): one operation less in every product."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.matrix = linear.weight.T
        mx.eval(self.matrix)  # a view
        if "bias" in linear:
            self.bias = linear.bias

    def __call__(self, x: mx.array) -> mx.array:
        """(..., in) -> (..., out)"""
        return mx.addmm(self.bias, x, self.matrix) if "bias" in self else x @ self.matrix


class FusedAttention(Attention):
    """`Attention` with one module `qkv`; made by `fused` alone."""

    qkv: Any

    def heads(
        self, x: mx.array, start: int | mx.array, length: int | Sequence[int], tap: Tap
    ) -> tuple[mx.array, mx.array, mx.array]:
        """As `Attention.heads`, of one token a row. Queries and keys are turned together where no
        norm comes between."""
        spec = self._spec
        if spec.qk_norm is not None:
            return super().heads(x, start, length, tap)
        H, K = spec.heads, spec.kv_heads
        y = self.qkv(x)
        if tap is not no_tap:
            self._told(y, tap)
        y = y.reshape(len(y), H + 2 * K, 1, -1)  # (B, 1, (H+2K)*D) -> (B, H+2K, 1, D)
        if spec.clip is not None:
            y = mx.clip(y, -spec.clip, spec.clip)
        turned, v = mx.split(y, [H + K], axis=1)
        if self._rope:
            turned = self._rope(turned, start, length)
        q, k = mx.split(turned, [H], axis=1)
        return tap("query", q), tap("key", k), v

    def _products(self, x: mx.array, tap: Tap) -> tuple[mx.array, mx.array, mx.array]:
        return self._told(self.qkv(x), tap)

    def _told(self, y: mx.array, tap: Tap) -> tuple[mx.array, mx.array, mx.array]:
        """(B, T, (H+2K)*D) in three, which a tap sees."""
        H, K, D = self._spec.heads, self._spec.kv_heads, self._spec.head_dim
        q, k, v = mx.split(y, [H * D, (H + K) * D], axis=-1)
        return tap("q", q), tap("k", k), tap("v", v)


class FusedMLP(MLP):
    """`MLP` with one module `gate_up`; made by `fused` alone."""

    gate_up: Any

    def _gate_up(self, x: mx.array, tap: Tap) -> tuple[mx.array, mx.array]:
        gate, up = mx.split(self.gate_up(x), 2, axis=-1)
        return tap("gate", gate), tap("up", up)


def _attention(attention: Any) -> Any:
    if not isinstance(attention, Attention):
        return attention
    return _with_one(attention, FusedAttention, "qkv", ("q", "k", "v"))


def _mlp(mlp: Any) -> Any:
    if not isinstance(mlp, MLP):
        if "shared" in mlp:
            mlp = copy.copy(mlp)
            mlp.shared = _mlp(mlp.shared)
        return mlp
    return _with_one(mlp, FusedMLP, "gate_up", ("gate", "up")) if "gate" in mlp else mlp


def _with_one(module: Any, kind: type, name: str, names: Sequence[str]) -> Any:
    """A copy of a module, of another kind, with one module in place of several; itself where they
    are not alike."""
    whole = joined([module[part] for part in names])
    if whole is None:
        return module
    made = copy.copy(module)
    for part in names:
        del made[part]
    made[name] = whole
    made.__class__ = kind
    return made


def joined(parts: Sequence[Any]) -> Any:
    """One module for several of one input, None where they are not alike.

    It has the outputs of all, in order. The parts' arrays become slices of its own.
    """
    first = parts[0]
    alike = {(type(part), tuple(part), _kind(part)) for part in parts}
    if len(alike) > 1 or type(first) not in (nn.Linear, PackedLinear):
        return None
    whole = copy.copy(first)
    for name in first:
        whole[name] = mx.concatenate([part[name] for part in parts])
        mx.eval(whole[name])
        start = 0
        for part in parts:
            rows = len(part[name])
            part[name] = whole[name][start : start + rows]
            start += rows
    mx.eval([part.parameters() for part in parts])
    return whole


def _kind(part: Any) -> tuple[Any, ...]:
    """What has to be the same for two modules to be one."""
    return getattr(part, "packing", None), *(array.dtype for array in part.values())
