"""From the last hidden state to logits: output matrix, tying, soft-cap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import Fault, NotApplicable
from ._patient import Call, Patient

Inject = Callable[[Patient, int], None]
ROW, COLUMN = 7, 3
DEFAULT_SOFTCAP = 30.0  # gemma2's own, in transformers


def _logits(change: Callable[[mx.array, Patient], mx.array]) -> Inject:
    """A fault that makes `change(logits, patient)` of what the output matrix gives."""

    def inject(patient: Patient, block: int) -> None:
        patient.head(lambda product, x: change(product(x), patient))

    return inject


def _matrix(change: Callable[[mx.array], mx.array]) -> Inject:
    """A fault that has `change(matrix)`, (V, C), for the output matrix."""

    def inject(patient: Patient, block: int) -> None:
        changed = change(_whole(patient))
        patient.head(lambda product, x: x @ changed.T)

    return inject


def _whole(patient: Patient) -> mx.array:
    return patient.weight("embed" if patient.spec.tied_head else "head")


def _column(change: Callable[[mx.array, int], mx.array]) -> Inject:
    """A fault in the logits of one token."""

    def changed(logits: mx.array, patient: Patient) -> mx.array:
        row = mx.arange(logits.shape[-1]) == ROW
        return mx.where(row, change(logits, ROW), logits)

    return _logits(changed)


def _tied(patient: Patient, block: int) -> None:
    if patient.spec.tied_head:
        raise NotApplicable("the head is tied")
    patient.head(lambda product, x: patient.part("embed").as_linear(x))


def _stale(patient: Patient, block: int) -> None:
    """An earlier copy of the table, as a checkpoint may carry it."""
    if not patient.spec.tied_head:
        raise NotApplicable("the head is not tied")
    table = _whole(patient)
    noise = mx.random.normal(table.shape, key=mx.random.key(0))
    changed = table + 0.01 * mx.abs(table).mean() * noise
    patient.head(lambda product, x: x @ changed.T)


def _one_weight(matrix: mx.array) -> mx.array:
    place = (mx.arange(len(matrix)) == ROW)[:, None] & (mx.arange(matrix.shape[1]) == COLUMN)
    return mx.where(place, matrix + 0.05, matrix)


def _two_rows_swapped(logits: mx.array, patient: Patient) -> mx.array:
    order = list(range(logits.shape[-1]))
    order[ROW], order[ROW + 1] = order[ROW + 1], order[ROW]
    return logits[..., mx.array(order)]


def _half_precision(patient: Patient, block: int) -> None:
    matrix = _whole(patient)
    low = matrix.astype(mx.bfloat16)
    patient.head(lambda product, x: (x.astype(mx.bfloat16) @ low.T).astype(x.dtype))


def _quantised(matrix: mx.array) -> mx.array:
    """8 bits with a scale and an offset per row."""
    low, high = matrix.min(1, keepdims=True), matrix.max(1, keepdims=True)
    step = (high - low) / 255
    return mx.round((matrix - low) / step) * step + low


def _last_row_missing(matrix: mx.array) -> mx.array:
    return mx.concatenate([matrix[:-1], mx.zeros_like(matrix[-1:])])


def _softcap(change: Callable[[mx.array, float], mx.array]) -> Inject:
    """A fault that has `change(logits, cap)` for cap * tanh(logits / cap)."""

    def inject(patient: Patient, block: int) -> None:
        cap = patient.spec.logit_softcap
        if not cap:
            raise NotApplicable("no soft-cap")
        bare: list[mx.array] = []

        def product(call: Call, x: mx.array) -> mx.array:
            bare[:] = [call(x)]
            return bare[0]

        def whole(call: Call, *args: Any, **kwargs: Any) -> mx.array:
            call(*args, **kwargs)
            return change(bare.pop(), cap)

        patient.head(product)
        patient.around("", None, whole)

    return inject


def _capped_at_default(patient: Patient, block: int) -> None:
    if patient.spec.logit_softcap == DEFAULT_SOFTCAP:
        raise NotApplicable("it is the default")
    _softcap(lambda z, cap: DEFAULT_SOFTCAP * mx.tanh(z / DEFAULT_SOFTCAP))(patient, block)


def _capped_low(logits: mx.array, cap: float) -> mx.array:
    return (cap * mx.tanh(logits.astype(mx.bfloat16) / cap)).astype(logits.dtype)


def _in_two_halves(patient: Patient, block: int) -> None:
    matrix = _whole(patient)
    half = len(matrix) // 2
    parts = matrix[:half], matrix[half:]
    patient.head(lambda product, x: mx.concatenate([x @ part.T for part in parts], axis=-1))


def _fault(name: str, what: str, inject: Inject, **more: Any) -> Fault:
    return Fault(name, what, inject, "head", "model", **more)


FAULTS = (
    _fault("tied", "the embedding is used for a head of its own", _tied, source="E03"),
    _fault("stale", "a tied head is an older copy of the embedding", _stale, source="E03"),
    _fault(
        "no-softcap",
        "the soft-cap on the logits is dropped",
        _softcap(lambda logits, cap: logits),
        source="E04",
    ),
    _fault(
        "softcap-default",
        "the soft-cap is the family's default",
        _capped_at_default,
    ),
    _fault(
        "softcap-low",
        "the soft-cap is applied in bfloat16",
        _softcap(_capped_low),
    ),
    _fault(
        "softcap-twice",
        "the soft-cap is applied twice",
        _softcap(lambda z, cap: cap * mx.tanh(mx.tanh(z / cap))),
    ),
    _fault(
        "scaled",
        "logits are larger by a ten-thousandth",
        _logits(lambda logits, patient: logits * 1.0001),
        source="E04",
    ),
    _fault(
        "row-off",
        "one row of the matrix is larger by a thousandth",
        _column(lambda logits, row: logits * 1.001),
    ),
    _fault("weight-off", "one weight of one row is off by 0.05", _matrix(_one_weight)),
    _fault("rows-swapped", "two rows of the matrix are swapped", _logits(_two_rows_swapped)),
    _fault("last-row-missing", "the last row of the matrix is zero", _matrix(_last_row_missing)),
    _fault("half-precision", "the product is done in bfloat16", _half_precision),
    _fault(
        "quantised",
        "quantised to 8 bits although it is not to be",
        _matrix(_quantised),
        source="E07",
    ),
    _fault(
        "in-halves",
        "two halves of the vocabulary are computed apart",
        _in_two_halves,
        equivalent=True,
    ),
)
