"""Attention: scale, softmax, heads, projections and their biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx

from . import Fault, NotApplicable
from ._patient import Call, Patient, seen_keys

Inject = Callable[[Patient, int], None]


def _attended(change: Callable[..., mx.array]) -> Inject:
    """A fault that computes `change(attend, q, k, v, scale, mask)`."""

    def inject(patient: Patient, block: int) -> None:
        patient.attention(block, change)

    return inject


def _scaled(factor: float) -> Inject:
    return _attended(lambda attend, q, k, v, scale, mask: attend(q, k, v, scale * factor, mask))


def _scale_of_head_width(patient: Patient, block: int) -> None:
    """head_dim^-1/2, where the configuration asks for another one."""
    spec = patient.heads_spec(block)
    usual = spec.head_dim**-0.5
    if abs(spec.scale / usual - 1) < 1e-6:
        raise NotApplicable("the scale is that of the head width")
    _scaled(usual / spec.scale)(patient, block)


def _scale_of_hidden_width(patient: Patient, block: int) -> None:
    """(hidden / heads)^-1/2 where heads have a width of their own."""
    spec = patient.heads_spec(block)
    width = patient.spec.width / spec.heads
    if width == spec.head_dim:
        raise NotApplicable("heads are as wide as hidden / heads")
    _scaled(width**-0.5 / spec.scale)(patient, block)


def _unscaled(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    return attend(q, k, v, 1.0, mask)


def _scaled_twice(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    return attend(q, k, v, scale * scale, mask)


def _grouped(change: Callable[..., mx.array]) -> Inject:
    """A fault of grouped-query attention: there is more than one group, of more than one head."""

    def inject(patient: Patient, block: int) -> None:
        spec = patient.heads_spec(block)
        if spec.kv_heads in (1, spec.heads):
            raise NotApplicable("no grouped heads")
        patient.attention(block, change)

    return inject


def _tiled(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    """Head h attends with key head h mod K where h // (H/K) is meant."""
    times = (1, q.shape[1] // k.shape[1], 1, 1)
    return attend(q, mx.tile(k, times), mx.tile(v, times), scale, mask)


def _first_group(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    """Multi-query attention: all heads share the first key head."""
    return attend(q, k[:, :1], v[:, :1], scale, mask)


def _softmax(change: Callable[[mx.array], mx.array]) -> Inject:
    """Attention written out, with `change` for what comes of softmax of the logits."""

    def attended(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
        times = q.shape[1] // k.shape[1]
        k, v = (mx.repeat(x, times, axis=1) for x in (k, v))
        logits = (q * scale) @ k.swapaxes(-1, -2)
        seen = seen_keys(mask, q.shape[2], k.shape[2])
        # Finite, because a row of padding sees nothing at all.
        logits = mx.where(seen, logits, mx.array(-1e9, logits.dtype))
        return (change(logits) @ v).astype(q.dtype)

    def inject(patient: Patient, block: int) -> None:
        if patient.heads_spec(block).softcap is not None:
            raise NotApplicable("attention logits are capped")
        patient.attention(block, attended)

    return inject


def _rounded_softmax(logits: mx.array) -> mx.array:
    weights = mx.softmax(logits.astype(mx.bfloat16), axis=-1, precise=True)
    return weights.astype(logits.dtype)


def _rounded_weights(logits: mx.array) -> mx.array:
    return mx.softmax(logits, axis=-1, precise=True).astype(mx.bfloat16).astype(logits.dtype)


def _plus_one(logits: mx.array) -> mx.array:
    """softmax with 1 added to its denominator."""
    top = mx.maximum(logits.max(axis=-1, keepdims=True), 0)
    weights = mx.exp(logits - top)
    return weights / (weights.sum(axis=-1, keepdims=True) + mx.exp(-top))


def _in_base_2(logits: mx.array) -> mx.array:
    """2^x for e^x, the factor log2(e) forgotten."""
    weights = mx.power(2.0, logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _plain_softmax(logits: mx.array) -> mx.array:
    return mx.softmax(logits, axis=-1, precise=True)


def _reversed(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    return attend(q, k, v, scale, mask)[:, ::-1]


def _one_head_lost(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    out = attend(q, k, v, scale, mask)
    return mx.concatenate([out[:, :-1], mx.zeros_like(out[:, -1:])], axis=1)


def _values_rounded(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    return attend(q, k, v.astype(mx.bfloat16).astype(v.dtype), scale, mask)


def _keys_for_values(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    return attend(q, k, k, scale, mask)


def _heads_not_turned(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    """(B, H, T, D) reshaped to (B, T, H*D) with the axes not exchanged first."""
    out = attend(q, k, v, scale, mask)
    B, H, T, D = out.shape
    return out.reshape(B, T, H, D).transpose(0, 2, 1, 3)


def _capped(change: Callable[[Any], Any]) -> Inject:
    """A fault of the attention soft-cap, where the engine's spec holds it."""

    def inject(patient: Patient, block: int) -> None:
        if patient.heads_spec(block).softcap is None:
            raise NotApplicable("attention logits are not capped")
        if not patient.is_engine:
            raise NotApplicable("the cap is written out in place")
        attention = patient.part("attn", block)
        attention._spec = change(attention._spec)

    return inject


def _without_bias(role: str) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        spec = patient.heads_spec(block)
        if not (spec.out_bias if role == "attn.o" else spec.qkv_bias):
            raise NotApplicable("the projection has no bias")
        if role == "attn.k" and spec.rope is None:
            raise NotApplicable("without rotary it adds the same to all logits of a query")
        _drop(patient, role, block)

    return inject


def _key_bias_without_rotary(patient: Patient, block: int) -> None:
    spec = patient.heads_spec(block)
    if not spec.qkv_bias or spec.rope is not None:
        raise NotApplicable("no key bias, or it is rotated")
    _drop(patient, "attn.k", block)


def _drop(patient: Patient, role: str, block: int) -> None:
    bias = patient.weight(role, block, "bias")
    patient.set_weight(role, block, mx.zeros_like(bias), "bias")


def _powers_of_two(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    return attend(q * 2, k / 2, v, scale, mask)


def _another_order(attend: Call, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    """Width of the heads in another order, in queries and keys alike."""
    order = mx.arange(q.shape[-1])[::-1]
    return attend(q[..., order], k[..., order], v, scale, mask)


def _fault(name: str, what: str, inject: Inject, role: str = "attn", **more: Any) -> Fault:
    return Fault(name, what, inject, role, **more)


FAULTS = (
    _fault("scale-of-head-width", "head_dim^-1/2 where the configuration has another scale",
           _scale_of_head_width, source="A01"),
    _fault("scale-of-hidden-width", "(hidden / heads)^-1/2 where heads have their own width",
           _scale_of_hidden_width),
    _fault("unscaled", "no scale", _attended(_unscaled), source="A19"),
    _fault("scaled-twice", "the scale is applied twice", _attended(_scaled_twice), source="A19"),
    _fault("scale-1e-3", "the scale is off by one in a thousand", _scaled(1.001)),
    _fault("scale-1e-4", "the scale is off by one in ten thousand", _scaled(1.0001)),
    _fault("tiled", "key and value heads are tiled, not repeated", _grouped(_tiled), source="A12"),
    _fault("first-group", "all heads share the first key head", _grouped(_first_group)),
    _fault("softmax-half-precision", "softmax in bfloat16", _softmax(_rounded_softmax)),
    _fault("weights-half-precision", "softmax's result in bfloat16", _softmax(_rounded_weights)),
    _fault("softmax-plus-one", "softmax with one added to its denominator", _softmax(_plus_one)),
    _fault("softmax-base-2", "softmax of base 2", _softmax(_in_base_2)),
    _fault("heads-reversed", "heads come out in reversed order", _attended(_reversed)),
    _fault("head-lost", "the last head gives nothing", _attended(_one_head_lost)),
    _fault("heads-not-turned", "heads and tokens are not exchanged before they are joined",
           _attended(_heads_not_turned)),
    _fault("values-rounded", "values are kept in bfloat16", _attended(_values_rounded)),
    _fault("keys-for-values", "keys are attended to in place of values",
           _attended(_keys_for_values)),
    _fault("cap-left-out", "the soft-cap of attention is left out",
           _capped(lambda spec: replace(spec, softcap=None))),
    _fault("cap-doubled", "the soft-cap of attention is twice as high",
           _capped(lambda spec: replace(spec, softcap=2 * spec.softcap))),
    _fault("query-bias", "the bias of the queries is dropped", _without_bias("attn.q"), "attn.q",
           source="A14"),
    _fault("key-bias", "the bias of the keys is dropped", _without_bias("attn.k"), "attn.k",
           source="A14"),
    _fault("value-bias", "the bias of the values is dropped", _without_bias("attn.v"), "attn.v",
           source="A14"),
    _fault("output-bias", "the bias of the output projection is dropped", _without_bias("attn.o"),
           "attn.o", source="A14"),
    _fault("powers-of-two", "queries doubled, keys halved: exact", _attended(_powers_of_two),
           equivalent=True),
    _fault("width-reordered", "width of queries and keys in another order: the same product",
           _attended(_another_order), equivalent=True),
    _fault("key-bias-without-rotary", "adds the same to all logits of a query: softmax drops it",
           _key_bias_without_rotary, "attn.k", equivalent=True),
    _fault("written-out", "attention written out in float32: the same mathematics",
           _softmax(_plain_softmax), equivalent=True),
)  # fmt: skip
