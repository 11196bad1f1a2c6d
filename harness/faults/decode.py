"""Faults that exist only where one token follows others: the step that a port writes twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import Fault, NotApplicable
from ._patient import Call, Patient, seen_keys

Inject = Callable[[Patient, int], None]
_plain = mx.fast.scaled_dot_product_attention  # as it is before anything stands in its place


def _step(change: Callable[..., mx.array]) -> Inject:
    """A fault that has `change(attend, q, k, v, scale, mask)` for a decoded token's attention."""

    def inject(patient: Patient, block: int) -> None:
        def wrap(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
            decoding = q.shape[2] == 1 and k.shape[2] > 1
            return (change if decoding else _unchanged)(attend, q, k, v, scale, mask)

        patient.attention(block, wrap)

    return inject


def _unchanged(attend: Any, *args: Any) -> mx.array:
    return attend(*args)


def _no_window(patient: Patient, block: int) -> None:
    """All that was ever fed is seen."""
    if not patient.heads_spec(block).window:
        raise NotApplicable("no window")
    every: list[mx.array] = []

    def wrap(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
        T, S = q.shape[2], k.shape[2]
        if S == T:
            every[:] = [k, v]
        else:
            new = (x[:, :, -T:] for x in (k, v))
            every[:] = [mx.concatenate(list(pair), axis=2) for pair in zip(every, new, strict=True)]
        if T == 1 and S > 1:
            return attend(q, *every, scale, None)
        return attend(q, k, v, scale, mask)

    patient.attention(block, wrap)


def _no_softcap(patient: Patient, block: int) -> None:
    if not patient.heads_spec(block).softcap:
        raise NotApplicable("no soft-cap")

    def change(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
        return _plain(q, k, v, scale=scale, mask=mask)

    _step(change)(patient, block)


def _scaled_twice(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    return attend(q, k, v, scale * scale, mask)


def _half_precision(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    low = (x.astype(mx.bfloat16) for x in (q, k, v))
    return attend(*low, scale, mask).astype(q.dtype)


def _newest_hidden(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    S = k.shape[2]
    return attend(q, k, v, scale, seen_keys(mask, 1, S) & (mx.arange(S) < S - 1))


def _tiled(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    """Key heads 0 1 0 1 where 0 0 1 1 is meant."""
    times = q.shape[1] // k.shape[1]
    k, v = (mx.concatenate([x] * times, axis=1) for x in (k, v))
    return attend(q, k, v, scale, mask)


def _tiled_heads(patient: Patient, block: int) -> None:
    spec = patient.heads_spec(block)
    if spec.heads == spec.kv_heads or spec.kv_heads == 1:
        raise NotApplicable("query heads do not share key heads")
    _step(_tiled)(patient, block)


def _in_float32(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    """The products written out: what a port without the fused kernel does."""
    B, H, T, D = q.shape
    K, S = k.shape[1], k.shape[2]
    logits = (q * scale).reshape(B, K, H // K, T, D) @ k[:, :, None].swapaxes(-1, -2)
    seen = seen_keys(mask, T, S)
    seen = seen[:, :, None] if seen.ndim == 4 else seen
    weights = mx.softmax(mx.where(seen, logits, -mx.inf), axis=-1, precise=True)
    return (weights @ v[:, :, None]).reshape(B, H, T, D)


def _written_out(patient: Patient, block: int) -> None:
    if patient.heads_spec(block).softcap:
        raise NotApplicable("it has a soft-cap")
    _step(_in_float32)(patient, block)


def _mlp(change: Callable[[Call, mx.array], mx.array]) -> Inject:
    """A fault that has `change(mlp, x)` for the MLP or experts of a decoded token."""

    def inject(patient: Patient, block: int) -> None:
        decoding = [False]

        def wrap(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
            decoding[0] = q.shape[2] == 1 and k.shape[2] > 1
            return attend(q, k, v, scale, mask)

        def called(call: Call, x: mx.array, *rest: Any) -> mx.array:
            return change(lambda x: call(x, *rest), x) if decoding[0] else call(x, *rest)

        patient.around("mlp", block, called)
        patient.attention(block, wrap)

    return inject


def _low(mlp: Call, x: mx.array) -> mx.array:
    return mlp(x.astype(mx.bfloat16).astype(x.dtype)).astype(mx.bfloat16).astype(x.dtype)


def _one_late(patient: Patient, block: int) -> None:
    def rotated(rotate: Any, x: mx.array, offset: Any) -> mx.array:
        if x.shape[2] > 1:
            return rotate(x, offset)
        late = mx.maximum(offset - 1, 0) if isinstance(offset, mx.array) else max(offset - 1, 0)
        return rotate(x, late)

    def looked_up(call: Call, at: mx.array) -> mx.array:
        return call(mx.maximum(at - 1, 0) if at.shape[-1] == 1 else at)

    if patient.spec.learned_positions:
        patient.around("positions", None, looked_up)
        return
    for i in range(len(patient.blocks)):
        patient.rotary(i, rotated)


def _fault(name: str, what: str, inject: Inject, role: str = "attn", **more: Any) -> Fault:
    return Fault(name, what, inject, role, "cache", **more)


FAULTS = (
    _fault("no-window", "the window is ignored when decoding", _no_window),
    _fault("no-softcap", "the soft-cap on attention is missing when decoding", _no_softcap),
    _fault(
        "scaled-twice",
        "the scale of attention is applied twice when decoding",
        _step(_scaled_twice),
    ),
    _fault("half-precision", "attention is in bfloat16 when decoding", _step(_half_precision)),
    _fault("newest-hidden", "the mask hides the newest key", _step(_newest_hidden)),
    _fault("tiled", "key heads are tiled when decoding", _tiled_heads, source="A12"),
    _fault("mlp-low", "the MLP is in bfloat16 when decoding", _mlp(_low), "mlp"),
    _fault("mlp-missing", "the MLP is left out when decoding", _mlp(lambda mlp, x: x * 0), "mlp"),
    _fault("one-late", "a decoded token is one position late", _one_late, source="R12"),
    _fault(
        "written-out",
        "attention is written out in products when decoding",
        _written_out,
        equivalent=True,
    ),
)
