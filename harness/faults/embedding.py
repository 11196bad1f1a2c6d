"""What enters the first block: the token table, its scale, learned positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import Fault, NotApplicable
from ._patient import Call, Patient

Inject = Callable[[Patient, int], None]


def _looked_up(change: Callable[[Call, mx.array, Patient], mx.array]) -> Inject:
    """A fault that has `change(look_up, ids, patient)` for rows of the table."""

    def inject(patient: Patient, block: int) -> None:
        patient.around("embed", None, lambda call, ids: change(call, ids, patient))

    return inject


def _rescaled(change: Callable[[float], float]) -> Inject:
    """A fault that multiplies by `change(scale)` what the model will multiply by its scale."""

    def inject(patient: Patient, block: int) -> None:
        scale = patient.spec.embed_scale
        if change(scale) == 1.0:
            raise NotApplicable("no scale, or one that bfloat16 holds")
        patient.around("embed", None, lambda call, ids: call(ids) * change(scale))

    return inject


def _rounding(scale: float) -> float:
    return mx.array(scale).astype(mx.bfloat16).astype(mx.float32).item() / scale  # type: ignore


def _one_row_off(look_up: Call, ids: mx.array, patient: Patient) -> mx.array:
    x = look_up(ids)
    row = patient.config.get("bos_token_id") or 0
    return mx.where((ids == row)[..., None], x * 1.01, x)


def _next_row(look_up: Call, ids: mx.array, patient: Patient) -> mx.array:
    return look_up((ids + 1) % patient.spec.vocab)


def _rounded(look_up: Call, ids: mx.array, patient: Patient) -> mx.array:
    x = look_up(ids)
    return x.astype(mx.bfloat16).astype(x.dtype)


def _one_hot(look_up: Call, ids: mx.array, patient: Patient) -> mx.array:
    table = patient.weight("embed")
    return (ids[..., None] == mx.arange(len(table))).astype(table.dtype) @ table


def _padding_is_zero(look_up: Call, ids: mx.array, patient: Patient) -> mx.array:
    """torch's `padding_idx`, where the table has a row for it."""
    padding = patient.config.get("pad_token_id") or 0
    x = look_up(ids)
    return mx.where((ids == padding)[..., None], mx.zeros_like(x), x)


def _positions(change: Callable[[Call, mx.array], mx.array]) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        patient.around("positions", None, change)

    return inject


def _one_further(look_up: Call, at: mx.array) -> mx.array:
    return look_up(at + 1)


def _same_everywhere(look_up: Call, at: mx.array) -> mx.array:
    return look_up(mx.zeros_like(at))


def _left_out(look_up: Call, at: mx.array) -> mx.array:
    return mx.zeros_like(look_up(at))


def _scaled(patient: Patient, block: int) -> None:
    if patient.spec.embed_scale != 1.0:
        raise NotApplicable("it is meant to be scaled")
    scale = patient.spec.width**0.5
    patient.around("embed", None, lambda call, ids: call(ids) * scale)


def _fault(name: str, what: str, inject: Inject, **more: Any) -> Fault:
    return Fault(name, what, inject, "embed", "model", **more)


FAULTS = (
    _fault("scaled-twice", "the scale is applied twice", _rescaled(lambda s: s), source="E01"),
    _fault(
        "scale-rounded",
        "the scale is rounded to bfloat16",
        _rescaled(_rounding),
        source="E01",
    ),
    _fault("not-scaled", "the scale is dropped", _rescaled(lambda s: 1 / s)),
    _fault("scaled", "scaled by the root of the width in a model that does not", _scaled),
    _fault("row-off", "the row of BOS is larger by a hundredth", _looked_up(_one_row_off)),
    _fault("padding-zero", "the padding token's row is zero", _looked_up(_padding_is_zero)),
    _fault("next-row", "every id is looked up one row further", _looked_up(_next_row)),
    _fault("half-precision", "rows are rounded to bfloat16", _looked_up(_rounded)),
    _fault("positions-shifted", "learned positions begin at 1", _positions(_one_further)),
    _fault("positions-stuck", "every token is at position 0", _positions(_same_everywhere)),
    _fault("no-positions", "learned positions are left out", _positions(_left_out)),
    _fault(
        "one-hot",
        "looked up by a product with one-hot rows",
        _looked_up(_one_hot),
        equivalent=True,
    ),
)
