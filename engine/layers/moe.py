"""Mixture of experts: a router chooses k of E gated MLPs for each token.

Definition: the routers of transformers and their experts, "eager" ones. Scores are float32 whatever
the dtype of the model, and so is the sum over the chosen experts.
"""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from ..errors import UnsupportedArchitecture
from ..runtime import device_name
from ..spec import MoESpec
from . import Tap, under
from .mlp import MLP, activation
from .packed import PackedExperts

SCORINGS = ("softmax", "sigmoid", "softmax of chosen")


class MoE(nn.Module):
    """(B, T, C) -> (B, T, C) through `top_k` of E experts for each token.

    Taps: "router", logits (B, T, E), and "experts", the chosen ones (B, T, k) in ascending order.
    What the tap gives back is used: experts that it names, in any order, are weighed by the
    router's own scores of them. Raises UnsupportedArchitecture for a scoring not in SCORINGS.
    """

    def __init__(self, spec: MoESpec, width: int) -> None:
        super().__init__()
        if spec.scoring not in SCORINGS:
            raise UnsupportedArchitecture(
                f"router scoring {spec.scoring!r}: the engine has {', '.join(SCORINGS)}"
            )
        self._spec = spec
        self.router = nn.Linear(width, spec.experts, bias=spec.router_bias)
        if spec.selection_bias:
            self.selection_bias = mx.zeros((spec.experts,))
        self.experts = Experts(spec, width)
        if spec.shared:
            self.shared = MLP(spec.shared, width)
        if spec.shared_gate:
            self.shared_gate = nn.Linear(width, 1, bias=False)

    def __call__(self, x: mx.array, tap: Tap) -> mx.array:
        spec = self._spec
        logits = tap("router", self._logits(x)).astype(mx.float32)
        scores = self._scores(logits)
        biased = scores + self.selection_bias if spec.selection_bias else scores
        chosen = tap("experts", choose(in_top_groups(biased, spec), spec.top_k))
        weights = mx.take_along_axis(scores, chosen, axis=-1)  # (B, T, k)
        if spec.scoring == "softmax of chosen":
            weights = mx.softmax(weights, axis=-1, precise=True)
        elif spec.renormalise:
            # A sigmoid can be zero for every expert chosen.
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
        weights = weights * spec.scale
        if spec.rounded_weights:
            weights = weights.astype(x.dtype)

        y = self.experts(x, chosen) * weights[..., None]  # (B, T, k, C)
        y = y.astype(mx.float32).sum(axis=-2).astype(x.dtype)
        if "shared" in self:
            shared = tap("shared", self.shared(x, under(tap, "shared")))
            if "shared_gate" in self:
                shared = mx.sigmoid(tap("shared_gate", self.shared_gate(x))) * shared
            y = y + shared
        return y

    def _logits(self, x: mx.array) -> mx.array:
        """(B, T, C) -> (B, T, E)"""
        if self._spec.float32_logits:
            return self.router(x.astype(mx.float32))
        return self.router(x)

    def _scores(self, logits: mx.array) -> mx.array:
        """What experts are chosen by; weights are made of it."""
        if self._spec.scoring == "softmax":
            return mx.softmax(logits, axis=-1, precise=True)
        return mx.sigmoid(logits) if self._spec.scoring == "sigmoid" else logits


class Experts(nn.Module):
    """E gated MLPs, their matrices stacked: (E, F, C), (E, F, C) and (E, C, F)."""

    def __init__(self, spec: MoESpec, width: int) -> None:
        super().__init__()
        self._spec, self._activation = spec, activation(spec.activation)
        E, F = spec.experts, spec.width
        self.gate, self.up = mx.zeros((E, F, width)), mx.zeros((E, F, width))
        self.down = mx.zeros((E, width, F))
        if spec.bias:
            self.gate_bias, self.up_bias = mx.zeros((E, F)), mx.zeros((E, F))
            self.down_bias = mx.zeros((E, width))

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        """(B, T, C) through each expert of (B, T, k) -> (B, T, k, C), not weighted."""
        B, T, k = chosen.shape
        experts = chosen.flatten()  # (N,), N = B*T*k pairs of a token and an expert
        tokens, order = mx.arange(B * T * k) // k, None
        if B * T > 1:  # the rows of one expert side by side are one product
            order = mx.argsort(experts)
            experts, tokens = experts[order], order // k

        def product(matrix: str, rows: mx.array) -> mx.array:
            y = expert_linear(rows, self[matrix], experts, order is not None)
            return y + self[f"{matrix}_bias"][experts] if self._spec.bias else y

        rows = x.reshape(B * T, -1)[tokens]  # (N, C)
        gate, up = product("gate", rows), product("up", rows)  # (N, F)
        if self._spec.clamp is not None:
            limit = mx.array(self._spec.clamp, gate.dtype)
            gate, up = mx.minimum(gate, limit), mx.clip(up, -limit, limit)
        if self._spec.up_offset:
            up = up + mx.array(self._spec.up_offset, up.dtype)
        y = product("down", self._activation(gate) * up)
        if order is not None:
            y = y[mx.argsort(order)]
        return y.reshape(B, T, k, -1)  # (N, C) -> (B, T, k, C)


def in_top_groups(scores: mx.array, spec: MoESpec) -> mx.array:
    """Scores (B, T, E), with those of experts outside the best groups at minus infinity."""
    if spec.groups == spec.top_groups:
        return scores
    grouped = scores.reshape(*scores.shape[:-1], spec.groups, -1)  # (B, T, groups, E/groups)
    best = mx.topk(grouped, spec.group_best, axis=-1).sum(axis=-1)
    chosen = choose(best, spec.top_groups)
    kept = (chosen[..., None] == mx.arange(spec.groups)).any(axis=-2)  # (B, T, groups)
    return mx.where(kept[..., None], grouped, -mx.inf).reshape(scores.shape)


def choose(scores: mx.array, count: int) -> mx.array:
    """The `count` experts of the highest scores, ascending; of equal ones the first.

    (B, T, E) -> (B, T, count).
    """
    best = mx.argsort(-scores, axis=-1)[..., :count]
    return mx.sort(best, axis=-1)


def expert_linear(
    x: mx.array, weight: mx.array | PackedExperts, experts: mx.array, in_order: bool = False
) -> mx.array:
    """Row n of (N, in) times the matrix of expert n, of (E, out, in) -> (N, out).

    `in_order` says that `experts` (N,) ascend, which is faster on a GPU.
    """
    # MLX's product of sorted rows takes the stride of the second last axis for that of the rows,
    # also where this axis has one element and any stride. Only a reshape of whole rows sets it.
    # https://github.com/ml-explore/mlx/issues/4253
    rows = mx.contiguous(x).reshape(len(x), 1, -1)
    return _product(rows, weight, experts, in_order).squeeze(-2)


def _product(
    x: mx.array, weight: mx.array | PackedExperts, experts: mx.array, in_order: bool
) -> mx.array:
    """(N, 1, in) -> (N, 1, out)"""
    if isinstance(weight, PackedExperts):
        return weight(x, experts, in_order)
    if x.dtype != mx.float32 and device_name() == "cpu":
        # MLX's CPU kernel takes float32 only. Rounding its result once is what a product at the
        # lower dtype is; it costs a copy of the matrices, or of those used if few.
        if experts.size < weight.shape[0]:
            weight, experts = weight[experts], mx.arange(experts.size)
        y = _product(x.astype(mx.float32), weight.astype(mx.float32), experts, in_order)
        return y.astype(x.dtype)
    return mx.gather_mm(x, weight.swapaxes(-1, -2), rhs_indices=experts, sorted_indices=in_order)
