"""Norms: their gain, epsilon, statistics and place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from engine.spec import NormSpec

from . import Fault, NotApplicable
from ._patient import Call, Patient

Inject = Callable[[Patient, int], None]
Normal = Callable[[mx.array, mx.array, "mx.array | None", NormSpec], mx.array]


def _rms(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    y = x.astype(mx.float32)
    y = y * mx.rsqrt(mx.mean(y * y, axis=-1, keepdims=True) + spec.eps)
    return (y * (spec.offset + gain.astype(mx.float32))).astype(x.dtype)


def _layer(x: mx.array, gain: mx.array, bias: mx.array | None, spec: NormSpec) -> mx.array:
    y = x.astype(mx.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * mx.rsqrt((y * y).mean(axis=-1, keepdims=True) + spec.eps)
    y = y * (spec.offset + gain.astype(mx.float32))
    return (y if bias is None else y + bias).astype(x.dtype)


def plain(x: mx.array, gain: mx.array, bias: mx.array | None, spec: NormSpec) -> mx.array:
    """What the norm of a spec is meant to be."""
    return (_layer if spec.kind == "layer" else _rms)(x, gain, bias, spec)


def spec_of(patient: Patient, role: str, block: int) -> NormSpec:
    """The norm a role is meant to be."""
    if role == "norm":
        return patient.spec.norm
    of_heads = role.endswith(("q_norm", "k_norm"))
    spec = patient.heads_spec(block).qk_norm if of_heads else patient.spec.blocks[block].norm
    if spec is None:
        raise NotApplicable("queries and keys have no norm")
    return spec


def normed(role: str, change: Normal, kind: str | None = None) -> Inject:
    """A fault that computes `change(x, gain, bias, spec)` in place of a norm.

    `kind` is the kind of norm there has to be; the gain is the stored one, without its offset.
    """

    def inject(patient: Patient, block: int) -> None:
        spec = spec_of(patient, role, block)
        if kind is not None and spec.kind != kind:
            raise NotApplicable(f"the norm is no {kind} norm")
        outside = None if role == "norm" else block
        module = patient.part(role, outside)
        if "weight" not in module:
            raise NotApplicable(f"{role} has parts")

        def called(call: Call, x: mx.array) -> mx.array:
            return change(x, module["weight"], module.get("bias"), spec)

        patient.around(role, outside, called)

    return inject


def epsilon_times(factor: float) -> Normal:
    def change(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
        return plain(x, gain, bias, NormSpec(spec.kind, spec.eps * factor, spec.offset, spec.bias))

    return change


def _felt(role: str, change: Normal) -> Inject:
    """An epsilon where it is felt: a norm after the branch takes that of its input out again."""

    def inject(patient: Patient, block: int) -> None:
        if patient.spec.blocks[block].post_norm:
            raise NotApplicable("a later norm takes the effect out again")
        normed(role, change)(patient, block)

    return inject


def _offset(value: float) -> Normal:
    def change(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
        if not spec.offset:
            raise NotApplicable("the gain has no offset")
        return plain(x, gain, bias, NormSpec(spec.kind, spec.eps, value, spec.bias))

    return change


def _with_offset(value: float) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        if not patient.spec.blocks[block].norm.offset:
            raise NotApplicable("the gain has no offset")
        normed("mlp_norm", _offset(value))(patient, block)

    return inject


def _in_half_precision(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    """Statistics in bfloat16, the product in the dtype of the input."""
    y = x.astype(mx.bfloat16)
    scale = mx.rsqrt(mx.mean(y * y, axis=-1, keepdims=True) + spec.eps).astype(x.dtype)
    return x * scale * (spec.offset + gain)


def _outside_the_root(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    root = mx.sqrt(mx.mean(x * x, axis=-1, keepdims=True))
    return x / (root + spec.eps) * (spec.offset + gain)


def _without_gain(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    return plain(x, mx.ones_like(gain) - spec.offset, bias, spec)


def _without_bias(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    return plain(x, gain, None, spec)


def _without_mean(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    """RMSNorm where LayerNorm is meant."""
    y = _rms(x, gain, bias, spec)
    return y if bias is None else y + bias


def _centred(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    """LayerNorm where RMSNorm is meant."""
    return _layer(x, spec.offset + gain, None, spec)


def _unbiased(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    """Variance over n - 1, as torch.var gives it unless told otherwise."""
    n = x.shape[-1]
    y = x - x.mean(axis=-1, keepdims=True)
    y = y * mx.rsqrt((y * y).sum(axis=-1, keepdims=True) / (n - 1) + spec.eps) * gain
    return y if bias is None else y + bias


def _gain_in_half_precision(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    return plain(x, gain.astype(mx.bfloat16).astype(gain.dtype), bias, spec)


def _gain_squared(x: mx.array, gain: mx.array, bias: Any, spec: NormSpec) -> mx.array:
    return plain(x, (spec.offset + gain) ** 2 - spec.offset, bias, spec)


def _skipped(role: str) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        outside = None if role == "norm" else block
        patient.around(role, outside, lambda call, x: x)

    return inject


def _after_rotary(patient: Patient, block: int) -> None:
    """Query and key norms applied once rotary is done: queries are rotated first."""
    attention = patient.heads_spec(block)
    if attention.qk_norm is None:
        raise NotApplicable("queries and keys have no norm")
    if attention.qk_norm_over == "all heads":
        raise NotApplicable("the norms are over all heads at once")
    norms: list[Call] = []

    def put_off(call: Call, x: mx.array) -> mx.array:
        norms.append(call)
        return x

    def rotated(rotate: Call, x: mx.array, offset: Any) -> mx.array:
        turned = rotate(x, offset).swapaxes(1, 2)  # (B, T, H, D): a head may have its own gain
        return norms.pop(0)(turned).swapaxes(1, 2)

    patient.around("attn.q_norm", block, put_off)
    patient.around("attn.k_norm", block, put_off)
    patient.rotary(block, rotated)


def _swapped(patient: Patient, block: int) -> None:
    """The norm before attention and the one before the MLP read each other's weights."""
    first, second = patient.part("attn_norm", block), patient.part("mlp_norm", block)
    first.weight, second.weight = second.weight, first.weight
    if "bias" in first:
        first.bias, second.bias = second.bias, first.bias


FAULTS = (
    Fault("gain-offset-twice", "the gain is 2 + w where 1 + w is meant", _with_offset(2.0),
          "mlp_norm", source="N01"),
    Fault("gain-offset-missing", "the gain is w where 1 + w is meant", _with_offset(0.0),
          "mlp_norm", source="N01"),
    Fault("epsilon", "epsilon is ten times too large",
          _felt("attn_norm", epsilon_times(10.0)), "attn_norm", source="N02"),
    Fault("epsilon-of-mlp", "epsilon of the norm before the MLP is ten times too large",
          _felt("mlp_norm", epsilon_times(10.0)), "mlp_norm", source="N02"),
    Fault("epsilon-of-post-norm", "epsilon of the norm after attention is ten times too large",
          normed("attn_post_norm", epsilon_times(10.0)), "attn_post_norm", source="N02"),
    Fault("epsilon-of-queries", "epsilon of the query norm is ten times too large",
          normed("attn.q_norm", epsilon_times(10.0)), "attn.q_norm", source="N02"),
    Fault("epsilon-left-out", "no epsilon at all", _felt("attn_norm", epsilon_times(0.0)),
          "attn_norm"),
    Fault("epsilon-outside", "epsilon is added outside the root",
          _felt("mlp_norm", lambda x, g, b, s: _outside_the_root(x, g, b, s)), "mlp_norm"),
    Fault("after-rotary", "query and key norms come after rotary", _after_rotary, "attn",
          source="N05"),
    Fault("half-precision", "statistics in bfloat16",
          normed("mlp_norm", _in_half_precision, "rms"), "mlp_norm", source="N07"),
    Fault("gain-left-out", "the gain is not applied", normed("attn_norm", _without_gain),
          "attn_norm"),
    Fault("gain-rounded", "the gain is kept in bfloat16",
          normed("attn_norm", _gain_in_half_precision), "attn_norm"),
    Fault("gain-squared", "the gain is applied twice", normed("mlp_norm", _gain_squared),
          "mlp_norm"),
    Fault("bias-left-out", "the bias of a layer norm is not added",
          normed("attn_norm", _without_bias, "layer"), "attn_norm"),
    Fault("no-mean", "RMSNorm where LayerNorm is meant",
          normed("mlp_norm", _without_mean, "layer"), "mlp_norm"),
    Fault("centred", "LayerNorm where RMSNorm is meant", normed("attn_norm", _centred, "rms"),
          "attn_norm"),
    Fault("unbiased", "variance over n - 1", normed("attn_norm", _unbiased, "layer"),
          "attn_norm"),
    Fault("post-norm-skipped", "the norm after attention is skipped", _skipped("attn_post_norm"),
          "attn_post_norm"),
    Fault("post-norm-of-mlp-skipped", "the norm after the MLP is skipped",
          _skipped("mlp_post_norm"), "mlp_post_norm"),
    Fault("swapped", "the two norms of a block have each other's weights", _swapped, "attn_norm"),
    Fault("last-skipped", "the last norm is skipped", _skipped("norm"), "norm", "model"),
    Fault("last-epsilon", "epsilon of the last norm is ten times too large",
          normed("norm", epsilon_times(10.0)), "norm", "model", source="N02"),
    Fault("written-out", "RMSNorm written out in float32: the same mathematics",
          normed("attn_norm", plain), "attn_norm", equivalent=True),
)  # fmt: skip
