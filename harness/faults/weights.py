"""Parameters that are not the checkpoint's: misread, misplaced, rounded, damaged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import Fault, NotApplicable
from ._patient import Call, Patient
from .mlp import dense

Inject = Callable[[Patient, int], None]
ROW, COLUMN = 3, 5
QKV = ("attn.q", "attn.k", "attn.v")


def _changed(role: str, change: Callable[[mx.array], mx.array], leaf: str = "weight") -> Inject:
    """A fault that puts `change(array)` in place of one parameter of a block."""

    def inject(patient: Patient, block: int) -> None:
        before = patient.weight(role, block, leaf)
        after = change(before)
        patient.set_weight(role, block, after, leaf)

    return inject


def _at(array: mx.array, row: int | None, column: int | None) -> mx.array:
    """True in one row, one column or one place of a matrix."""
    rows, columns = mx.arange(len(array))[:, None], mx.arange(array.shape[1])
    return (rows == (rows if row is None else row)) & (
        columns == (columns if column is None else column)
    )


def _one_off(w: mx.array) -> mx.array:
    return mx.where(_at(w, ROW, COLUMN), w + 0.05, w)


def _zero_row(w: mx.array) -> mx.array:
    return mx.where(_at(w, ROW, None), 0.0, w)


def _column_larger(w: mx.array) -> mx.array:
    return mx.where(_at(w, None, COLUMN), w * 1.001, w)


def _rows_swapped(w: mx.array) -> mx.array:
    order = list(range(len(w)))
    order[ROW], order[ROW + 1] = order[ROW + 1], order[ROW]
    return w[mx.array(order)]


def _meta_rows(patient: Patient, block: int) -> None:
    """Rows of queries and keys as Meta writes them: a head's pairs are neighbours, not halves."""
    width = patient.spec.blocks[block].attention.head_dim
    if patient.spec.blocks[block].attention.rope is None:
        raise NotApplicable("no rotary embedding")
    for role in QKV[:2]:
        w = patient.weight(role, block)
        rows = mx.arange(len(w)).reshape(-1, 2, width // 2).transpose(0, 2, 1).reshape(-1)
        patient.set_weight(role, block, w[rows])


def _rounded(w: mx.array) -> mx.array:
    return w.astype(mx.bfloat16).astype(w.dtype)


def _through_half(w: mx.array) -> mx.array:
    return w.astype(mx.float16).astype(w.dtype)


def _quantised(w: mx.array) -> mx.array:
    """8 bits, symmetric, one scale per row."""
    step = mx.abs(w).max(1, keepdims=True) / 127
    return mx.round(w / step) * step


def _transposed(w: mx.array) -> mx.array:
    if w.shape[0] != w.shape[1]:
        raise NotApplicable("not square")
    return w.T


def _other_block(block: int, patient: Patient) -> int:
    if len(patient.blocks) < 2:
        raise NotApplicable("one block")
    return (block + 1) % len(patient.blocks)


def _from_another_block(role: str) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        theirs = patient.weight(role, _other_block(block, patient))
        if theirs.shape != patient.weight(role, block).shape:
            raise NotApplicable("another shape")
        patient.set_weight(role, block, theirs)

    return inject


def _alike(patient: Patient, block: int) -> tuple[Any, Any, int]:
    """The parameters of a block and of another that can take its place."""
    other = _other_block(block, patient)
    if patient.spec.blocks[block] != patient.spec.blocks[other]:
        raise NotApplicable("the next block is of another kind")
    return patient.part("", block).parameters(), patient.part("", other).parameters(), other


def _copied(patient: Patient, block: int) -> None:
    _, theirs, _ = _alike(patient, block)
    patient.part("", block).update(theirs)


def _exchanged(patient: Patient, block: int) -> None:
    mine, theirs, other = _alike(patient, block)
    patient.part("", block).update(theirs)
    patient.part("", other).update(mine)


def _run_twice(patient: Patient, block: int) -> None:
    def called(call: Call, x: mx.array, *rest: Any, **more: Any) -> mx.array:
        # Both see the same past, and only the second adds to it.
        spare, spare_more = copy.deepcopy((rest, more))
        return call(call(x, *spare, **spare_more), *rest, **more)

    patient.around("", block, called)


def _left_out(patient: Patient, block: int) -> None:
    def called(call: Call, x: mx.array, *rest: Any, **more: Any) -> mx.array:
        call(x, *rest, **more)  # for its cache, which others ask for the length
        return x

    patient.around("", block, called)


def _fused(patient: Patient) -> tuple[str, ...]:
    """The parameters of a fused q/k/v of equal thirds."""
    if not any("blocks.{i}.attn.q" in n.targets for n in patient.spec.names if len(n.targets) > 1):
        raise NotApplicable("q, k and v are apart in the checkpoint")
    attention = patient.heads_spec(0)
    if attention.heads != attention.kv_heads:
        raise NotApplicable("q, k and v have unequal shares")
    return ("weight", "bias") if attention.qkv_bias else ("weight",)


def _split_in(order: tuple[str, ...]) -> Inject:
    """The thirds of a fused q/k/v read in another order."""

    def inject(patient: Patient, block: int) -> None:
        for leaf in _fused(patient):
            read = [patient.weight(role, block, leaf) for role in order]
            for role, value in zip(QKV, read, strict=True):
                patient.set_weight(role, block, value, leaf)

    return inject


def _split_by_heads(patient: Patient, block: int) -> None:
    """Rows of a fused q/k/v read as (H, 3, D) where they are (3, H, D)."""
    leaves = _fused(patient)
    heads = patient.spec.blocks[block].attention.heads
    for leaf in leaves:
        whole = mx.concatenate([patient.weight(role, block, leaf) for role in QKV])
        rows = whole.reshape(heads, 3, -1, *whole.shape[1:]).swapaxes(0, 1)
        for role, value in zip(QKV, rows.flatten(1, 2), strict=True):
            patient.set_weight(role, block, value, leaf)


def _neurons_permuted(patient: Patient, block: int) -> None:
    """Rows of gate and up and columns of down in the same other order."""
    spec = dense(patient, block)
    order = mx.random.permutation(spec.width, key=mx.random.key(0))
    for role in ("mlp.gate", "mlp.up") if spec.gated else ("mlp.up",):
        for leaf in ("weight", "bias") if spec.bias else ("weight",):
            _changed(role, lambda w: w[order], leaf)(patient, block)
    _changed("mlp.down", lambda w: w[:, order])(patient, block)


def _values_doubled(patient: Patient, block: int) -> None:
    """Values twice as large, the columns that read them half: exact in binary."""
    for leaf in ("weight", "bias"):
        try:
            _changed("attn.v", lambda w: w * 2, leaf)(patient, block)
        except NotApplicable:
            if leaf == "weight":
                raise
    _changed("attn.o", lambda w: w / 2)(patient, block)


def _heads_exchanged(patient: Patient, block: int) -> None:
    """Query heads that share a key head change places, and their columns in o do too."""
    spec = patient.heads_spec(block)
    H, K, D = spec.heads, spec.kv_heads, spec.head_dim
    if H == K:
        raise NotApplicable("every head has a key head of its own")
    order = mx.arange(H * D).reshape(K, H // K, D)[:, ::-1].flatten()
    for leaf in ("weight", "bias") if spec.qkv_bias else ("weight",):
        _changed("attn.q", lambda w: w[order], leaf)(patient, block)
    _changed("attn.o", lambda w: w[:, order])(patient, block)


def _minus_zero(patient: Patient, block: int) -> None:
    patient.part("", block).apply(lambda w: mx.where(w == 0, mx.array(-0.0, w.dtype), w))


FAULTS = (
    Fault(
        "blocks-exchanged",
        "two blocks have changed places, as when 10 is sorted before 2",
        _exchanged,
        "",
        "blocks",
        source="E13",
    ),
    Fault("block-copied", "a block has the next one's parameters", _copied, "", source="E13"),
    Fault("block-twice", "a block is run twice", _run_twice, ""),
    Fault("block-left-out", "a block is left out", _left_out, ""),
    Fault(
        "one-off",
        "one weight of the value projection is off by 0.05",
        _changed("attn.v", _one_off),
        "attn.v",
        source="E15",
    ),
    Fault(
        "one-off-query",
        "one weight of the query projection is off by 0.05",
        _changed("attn.q", _one_off),
        "attn.q",
        source="E15",
    ),
    Fault(
        "one-off-down",
        "one weight of the down projection is off by 0.05",
        _changed("mlp.down", _one_off),
        "mlp.down",
        source="E15",
    ),
    Fault(
        "rounded",
        "the output projection is rounded to bfloat16",
        _changed("attn.o", _rounded),
        "attn.o",
    ),
    Fault(
        "rounded-half",
        "the up projection went through float16",
        _changed("mlp.up", _through_half),
        "mlp.up",
    ),
    Fault(
        "rounded-norm",
        "the gain of a norm is rounded to bfloat16",
        _changed("attn_norm", _rounded),
        "attn_norm",
    ),
    Fault(
        "quantised",
        "the key projection is quantised to 8 bits although it is not to be",
        _changed("attn.k", _quantised),
        "attn.k",
        source="E07",
    ),
    Fault(
        "zero-row",
        "one row of the output projection is zero",
        _changed("attn.o", _zero_row),
        "attn.o",
    ),
    Fault(
        "rows-swapped",
        "two rows of the up projection are swapped",
        _changed("mlp.up", _rows_swapped),
        "mlp.up",
    ),
    Fault(
        "column-scaled",
        "one column of the down projection is larger by a thousandth",
        _changed("mlp.down", _column_larger),
        "mlp.down",
    ),
    Fault(
        "transposed",
        "a square output projection is transposed",
        _changed("attn.o", _transposed),
        "attn.o",
        source="E06",
    ),
    Fault(
        "meta-rows",
        "rows of queries and keys are in Meta's order",
        _meta_rows,
        "attn.q",
        source="R22",
    ),
    Fault(
        "foreign-query",
        "the query projection is the next block's",
        _from_another_block("attn.q"),
        "attn.q",
    ),
    Fault(
        "foreign-norm",
        "the gain before the MLP is the next block's",
        _from_another_block("mlp_norm"),
        "mlp_norm",
    ),
    Fault(
        "fused-order",
        "a fused q/k/v is split as q, v, k",
        _split_in(("attn.q", "attn.v", "attn.k")),
        "attn.q",
    ),
    Fault(
        "fused-by-heads",
        "a fused q/k/v is split head by head",
        _split_by_heads,
        "attn.q",
    ),
    Fault(
        "neurons-permuted",
        "the neurons of the MLP are in another order",
        _neurons_permuted,
        "mlp",
        equivalent=True,
    ),
    Fault(
        "values-doubled",
        "values are twice as large and read at half",
        _values_doubled,
        "attn",
        equivalent=True,
    ),
    Fault(
        "heads-exchanged",
        "query heads of one key head are in another order",
        _heads_exchanged,
        "attn",
        equivalent=True,
    ),
    Fault("minus-zero", "zeros have the other sign", _minus_zero, "", equivalent=True),
)
