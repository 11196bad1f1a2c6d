"""Rows of unequal length in one batch: padding in front, its mask, positions, rows that mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import Fault, NotApplicable
from ._patient import Call, Patient, seen_keys

Inject = Callable[[Patient, int], None]


def _batched(inject: Inject) -> Inject:
    """For candidates that compute batches of this model at all."""

    def planted(patient: Patient, block: int) -> None:
        if patient.backend.batch([(1, 2, 3), (1, 2, 3, 4, 5)]) is None:
            raise NotApplicable("no batches")
        inject(patient, block)

    return planted


def _masked(change: Callable[[mx.array], mx.array], decoding: bool = False) -> Inject:
    """A fault that has `change(seen)` for the mask (B, 1, T, S) of a batch, true where seen.

    `decoding`: only where one token follows others.
    """

    def inject(patient: Patient, block: int) -> None:
        def wrap(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
            T, S = q.shape[2], k.shape[2]
            if len(q) > 1 and isinstance(mask, mx.array) and (not decoding or T == 1 < S):
                mask = change(seen_keys(mask, T, S))
            return attend(q, k, v, scale, mask)

        for i in range(len(patient.blocks)):
            patient.attention(i, wrap)

    return _batched(inject)


def _any_row(seen: mx.array) -> mx.array:
    """What the longest row may see, which has no padding."""
    return mx.broadcast_to(seen.any(axis=0, keepdims=True), seen.shape)


def _first_row(seen: mx.array) -> mx.array:
    return mx.broadcast_to(seen[:1], seen.shape)


def _starts(seen: mx.array) -> mx.array:
    """(B, 1, 1, 1): how much padding each row has. Padding is seen by no later token."""
    T, S = seen.shape[-2:]
    later = mx.arange(S) < mx.arange(S - T, S)[:, None]
    real = (seen & later).any(axis=-2, keepdims=True)
    return mx.argmax(real, axis=-1, keepdims=True)


def _less_padding(seen: mx.array) -> mx.array:
    at = mx.arange(seen.shape[-1])
    return seen | (_any_row(seen) & (at == _starts(seen) - 1))


def _more_padding(seen: mx.array) -> mx.array:
    """Rows with padding lose their first token, which sees only itself."""
    T, S = seen.shape[-2:]
    at, starts = mx.arange(S), _starts(seen)
    itself = at == mx.arange(S - T, S)[:, None]
    return seen & (itself | (starts == 0) | (at != starts))


def _attention(change: Callable[..., mx.array]) -> Inject:
    """A fault that has `change(attend, q, k, v, scale, mask)` for a batch in one block."""

    def inject(patient: Patient, block: int) -> None:
        def wrap(attend: Any, q: Any, *rest: Any) -> mx.array:
            return change(attend, q, *rest) if len(q) > 1 else attend(q, *rest)

        patient.attention(block, wrap)

    return _batched(inject)


def _first_rows_values(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    return attend(q, k, mx.broadcast_to(v[:1], v.shape), scale, mask)


def _low(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    low = (x.astype(mx.bfloat16) for x in (q, k, v))
    return attend(*low, scale, mask).astype(q.dtype)


def _padding_cleared(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
    if not isinstance(mask, mx.array):
        return attend(q, k, v, scale, mask)
    starts = _starts(seen_keys(mask, q.shape[2], k.shape[2]))
    real = mx.arange(k.shape[2])[:, None] >= starts  # (B, 1, S, 1)
    return attend(q, k, mx.where(real, v, mx.array(0.0, v.dtype)), scale, mask)


def _rows_reversed(patient: Patient, block: int) -> None:
    patient.around("", None, lambda call, *args, **kwargs: call(*args, **kwargs)[::-1])


def _row_leaks(patient: Patient, block: int) -> None:
    """A mean that is taken over the batch as well."""

    def called(call: Call, x: mx.array) -> mx.array:
        return call(x + 1e-3 * (x.mean(axis=0, keepdims=True) - x) if len(x) > 1 else x)

    patient.around("mlp_norm", block, called)


def _positions(change: Callable[[mx.array], mx.array]) -> Inject:
    """A fault that has `change(at)` for the learned positions (B, T) of a batch."""

    def inject(patient: Patient, block: int) -> None:
        patient.around("positions", None, lambda call, at: call(change(at) if at.ndim == 2 else at))

    return _batched(inject)


def _from_the_padding_on(at: mx.array) -> mx.array:
    return mx.broadcast_to(at.max(axis=0, keepdims=True), at.shape)


def _rotary(queries: bool) -> Inject:
    """Positions counted from where padding begins; of queries alone, or of keys as well."""

    def inject(patient: Patient, block: int) -> None:
        for i, spec in enumerate(patient.spec.blocks):
            heads = spec.attention.heads
            if queries and heads == spec.attention.kv_heads:
                raise NotApplicable("queries and keys have as many heads")
            patient.rotary(i, _padded(heads if queries else None))

    return _batched(inject)


def _padded(heads: int | None) -> Callable[..., mx.array]:
    def change(rotate: Any, x: mx.array, offset: Any) -> mx.array:
        rows = isinstance(offset, mx.array) and offset.ndim > 0
        if rows and heads in (None, x.shape[1]):
            offset = mx.broadcast_to(offset.max(), offset.shape)
        return rotate(x, offset)

    return change


def _fault(name: str, what: str, inject: Inject, role: str = "attn", **more: Any) -> Fault:
    return Fault(name, what, inject, role, "batch", **more)


FAULTS = (
    _fault("padding-seen", "padding is attended to", _masked(_any_row), source="C19"),
    _fault(
        "padding-seen-later",
        "padding is attended to by tokens that are decoded",
        _masked(_any_row, decoding=True),
        source="C19",
    ),
    _fault("first-mask", "all rows have the first row's mask", _masked(_first_row)),
    _fault("less-padding", "one padding token is attended to", _masked(_less_padding)),
    _fault("more-padding", "a row's first token counts as padding", _masked(_more_padding)),
    _fault("first-values", "all rows have the first row's values", _attention(_first_rows_values)),
    _fault("half-precision", "attention of a batch is in bfloat16", _attention(_low)),
    _fault("rows-reversed", "rows come back in another order", _batched(_rows_reversed), ""),
    _fault("row-leaks", "a row has something of the others", _batched(_row_leaks), "mlp_norm"),
    _fault(
        "positions-padded",
        "learned positions are counted from the padding on",
        _positions(_from_the_padding_on),
        "embed",
        source="C19",
    ),
    _fault(
        "positions-shifted",
        "learned positions of a batch begin at 1",
        _positions(lambda at: at + 1),
        "embed",
    ),
    _fault(
        "queries-padded",
        "positions of queries are counted from the padding on, those of keys are not",
        _rotary(queries=True),
    ),
    _fault(
        "rotary-padded",
        "rotary positions are counted from the padding on: relative, so the same",
        _rotary(queries=False),
        equivalent=True,
    ),
    _fault(
        "padding-cleared",
        "values of padding are zero",
        _attention(_padding_cleared),
        equivalent=True,
    ),
)
