"""Rotary embedding and positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx

from engine.layers.rope import Rope, periods
from engine.spec import RopeSpec

from . import Fault, NotApplicable
from ._patient import Patient


def _rotation(change: Callable[..., mx.array]) -> Callable[[Patient, int], None]:
    """A fault that calls `change(rotate, x, offset)` for queries and keys of one block."""

    def inject(patient: Patient, block: int) -> None:
        patient.rotary(block, change)

    return inject


def _everywhere(change: Callable[..., mx.array]) -> Callable[[Patient, int], None]:
    def inject(patient: Patient, block: int) -> None:
        for i in range(len(patient.blocks)):
            patient.rotary(i, change)

    return inject


def _interleaved(rotate: Any, x: mx.array, offset: Any) -> mx.array:
    """Pairs (0, 1), (2, 3), ... where halves are meant: permute, rotate, permute back."""
    D = x.shape[-1]
    order = mx.concatenate([mx.arange(0, D, 2), mx.arange(1, D, 2)])
    return rotate(x[..., order], offset)[..., mx.argsort(order)]


def _restarts_when_decoding(rotate: Any, x: mx.array, offset: Any) -> mx.array:
    return rotate(x, 0 if x.shape[2] == 1 else offset)


def _restarts_in_chunks(rotate: Any, x: mx.array, offset: Any) -> mx.array:
    return rotate(x, 0 if x.shape[2] > 1 else offset)


def _half_of_the_width(rotate: Any, x: mx.array, offset: Any) -> mx.array:
    half = x.shape[-1] // 2
    return mx.concatenate([rotate(x, offset)[..., :half], x[..., half:]], axis=-1)


def _one_position_on(rotate: Any, x: mx.array, offset: Any) -> mx.array:
    return rotate(x, offset + 1)


def _backwards(rotate: Any, x: mx.array, offset: Any) -> mx.array:
    """The angle's sign turned: the rotation of the conjugate."""
    half = x.shape[-1] // 2
    turned = mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
    back = rotate(turned, offset)
    return mx.concatenate([back[..., half:], back[..., :half]], axis=-1)


def _rounded_result(rotate: Any, x: mx.array, offset: Any) -> mx.array:
    return rotate(x.astype(mx.bfloat16), offset).astype(x.dtype)


def _queries_only(shift: Callable[..., mx.array]) -> Callable[[Patient, int], None]:
    """A change to the queries alone: they have more heads than keys, or come first."""

    def inject(patient: Patient, block: int) -> None:
        heads = patient.spec.blocks[block].attention.heads
        if heads == patient.spec.blocks[block].attention.kv_heads:
            raise NotApplicable("queries and keys have as many heads")

        def change(rotate: Any, x: mx.array, offset: Any) -> mx.array:
            return shift(rotate, x, offset) if x.shape[1] == heads else rotate(x, offset)

        patient.rotary(block, change)

    return inject


def _all_shifted(patient: Patient, block: int) -> None:
    for spec in patient.spec.blocks:
        if spec.attention.rope and spec.attention.rope.type == "dynamic":
            raise NotApplicable("the base depends on the last position")
    _everywhere(_one_position_on)(patient, block)


def respun(change: Callable[[RopeSpec], RopeSpec]) -> Callable[[Patient, int], None]:
    """A fault that rotates by another specification in one block."""

    def inject(patient: Patient, block: int) -> None:
        spec = patient.spec.blocks[block].attention.rope
        if spec is None or change(spec) == spec:
            raise NotApplicable("no such rotary setting")
        rope = Rope(change(spec))

        def rotated(rotate: Any, x: mx.array, offset: Any) -> mx.array:
            end = offset + x.shape[2] if isinstance(offset, int) else 0
            return rope(x, offset, end)

        patient.rotary(block, rotated)

    return inject


def _periods_rounded(patient: Patient, block: int) -> None:
    spec = patient.spec.blocks[block].attention.rope
    if spec is None or spec.type == "dynamic":
        raise NotApplicable("no rotary embedding with one table")
    table = mx.array(periods(spec)).astype(mx.bfloat16).astype(mx.float32)

    def rotated(rotate: Any, x: mx.array, offset: Any) -> mx.array:
        return mx.fast.rope(
            x, spec.dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=table
        )

    patient.rotary(block, rotated)


FAULTS = (
    Fault(
        "interleaved",
        "pairs of neighbours are rotated, not of halves",
        _rotation(_interleaved),
        "attn",
        source="R01",
    ),
    Fault(
        "half-width",
        "only half of the head width is rotated",
        _rotation(_half_of_the_width),
        "attn",
        source="R10",
    ),
    Fault(
        "decode-restarts",
        "a decoded token is at position 0",
        _everywhere(_restarts_when_decoding),
        "attn",
        "cache",
        source="R12",
    ),
    Fault(
        "chunk-restarts",
        "every chunk starts at position 0",
        _everywhere(_restarts_in_chunks),
        "attn",
        "cache",
        source="R12",
    ),
    Fault(
        "query-ahead",
        "queries are one position ahead of keys",
        _queries_only(_one_position_on),
        "attn",
        source="R14",
    ),
    Fault(
        "half-precision",
        "rotated in bfloat16",
        _rotation(_rounded_result),
        "attn",
        source="R16",
    ),
    Fault(
        "periods-rounded",
        "the table of periods is kept in bfloat16",
        _periods_rounded,
        "attn",
        source="R16",
    ),
    Fault(
        "no-scaling",
        "the scaling of positions is ignored",
        respun(lambda spec: replace(spec, type="default")),
        "attn",
        source="R03",
    ),
    Fault(
        "scaling-doubled",
        "positions are scaled by twice the factor",
        respun(
            lambda spec: spec if spec.type == "default" else replace(spec, factor=2 * spec.factor)
        ),
        "attn",
    ),
    Fault(
        "no-magnitude",
        "the factor that goes with a scaling of positions is missing",
        respun(lambda spec: replace(spec, magnitude=1.0)),
        "attn",
        source="R06",
    ),
    Fault(
        "magnitude-squared",
        "that factor is applied twice",
        respun(lambda spec: replace(spec, magnitude=spec.magnitude**2)),
        "attn",
        source="R06",
    ),
    Fault(
        "default-base",
        "the base is 10000 whatever the configuration says",
        respun(lambda spec: replace(spec, theta=10000.0)),
        "attn",
    ),
    Fault("backwards", "angles have the other sign", _rotation(_backwards), "attn"),
    Fault(
        "shifted",
        "all positions one further: relative, so the same",
        _all_shifted,
        "attn",
        "blocks",
        equivalent=True,
    ),
)
