"""Keys and values of past tokens. One pass over a whole sequence is right in all of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import Fault, NotApplicable
from ._patient import Patient, seen_keys

Inject = Callable[[Patient, int], None]
# change(k, v, seen, T) -> k, v, seen: keys and values (B, K, S, D), the last T of them new, and
# which of them are seen, (.., T, S).
Change = Callable[[mx.array, mx.array, mx.array, int], tuple[mx.array, mx.array, mx.array]]


def _past(change: Change, *, window: bool | None = None, decoding: bool | None = None) -> Inject:
    """A fault in what attention gets from the cache, where that holds earlier tokens.

    `window` and `decoding` say in which blocks and steps: with or without a window, one token at
    a time or several; None for all.
    """

    def inject(patient: Patient, block: int) -> None:
        _only(patient, block, window)

        def wrap(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
            T, S = q.shape[2], k.shape[2]
            if S == T or (decoding is not None and decoding != (T == 1)):
                return attend(q, k, v, scale, mask)
            return attend(q, *_of(change(k, v, seen_keys(mask, T, S), T), scale))

        patient.attention(block, wrap)

    return inject


def _of(found: tuple[mx.array, mx.array, mx.array], scale: float) -> tuple[Any, ...]:
    k, v, seen = found
    return k, v, scale, seen


def _only(patient: Patient, block: int, window: bool | None) -> None:
    if window is not None and window != bool(patient.spec.blocks[block].attention.window):
        raise NotApplicable("a window" if not window else "no window")


def _everywhere(inject: Inject) -> Inject:
    """The same in all blocks that have a place for it."""

    def planted(patient: Patient, block: int) -> None:
        count = 0
        for i in range(len(patient.blocks)):
            try:
                inject(patient, i)
                count += 1
            except NotApplicable:
                pass
        if not count:
            raise NotApplicable("no block has a place for it")

    return planted


def _whole_buffer(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    """What was allocated and not filled, zeros, is attended to."""
    return _with_room(k, v, seen, True)


def _room_masked(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    return _with_room(k, v, seen, False)


def _with_room(k: mx.array, v: mx.array, seen: mx.array, visible: bool) -> Any:
    room = -k.shape[2] % 64
    empty = mx.zeros((*k.shape[:2], room, k.shape[3]), k.dtype)
    more = mx.full((*seen.shape[:-1], room), visible, mx.bool_)
    return (
        mx.concatenate([k, empty], axis=2),
        mx.concatenate([v, empty], axis=2),
        mx.concatenate([seen, more], axis=-1),
    )


def _rolled(x: mx.array, past: int, by: int) -> mx.array:
    return mx.concatenate([mx.roll(x[:, :, :past], by, 2), x[:, :, past:]], axis=2)


def _out_of_order(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    """A ring as it lies in memory; the mask is for tokens in time order."""
    past = k.shape[2] - T
    by = past // 2 or 1
    return _rolled(k, past, by), _rolled(v, past, by), seen


def _order_and_mask(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    k, v, _ = _out_of_order(k, v, seen, T)
    past = k.shape[2] - T
    turned = mx.roll(seen[..., :past], past // 2 or 1, -1)
    return k, v, mx.concatenate([turned, seen[..., past:]], axis=-1)


def _half_precision(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    return _stored(k, T), _stored(v, T), seen


def _stored(x: mx.array, T: int) -> mx.array:
    past = x[:, :, :-T].astype(mx.bfloat16).astype(x.dtype)
    return mx.concatenate([past, x[:, :, -T:]], axis=2)


def _without_oldest(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    return k[:, :, 1:], v[:, :, 1:], seen[..., 1:]


def _one_too_few(window: int) -> Change:
    def change(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
        full = k.shape[2] - T >= window - 1
        return _without_oldest(k, v, seen, T) if full else (k, v, seen)

    return change


def _short_window(patient: Patient, block: int) -> None:
    window = patient.spec.blocks[block].attention.window
    if window is None:
        raise NotApplicable("no window")
    _past(_one_too_few(window))(patient, block)


def _values_behind(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    past = v.shape[2] - T
    shifted = mx.concatenate([v[:, :, :1], v[:, :, : past - 1], v[:, :, past:]], axis=2)
    return k, shifted, seen


def _newest_unwritten(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    return mx.concatenate([k[:, :, :-1], mx.zeros_like(k[:, :, -1:])], axis=2), v, seen


def _newest_dropped(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    """Attention runs before the new token is in the cache."""
    return k[:, :, :-1], v[:, :, :-1], seen[..., :-1]


def _forgets(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    return k[:, :, -T:], v[:, :, -T:], seen[..., -T:]


def _chunk_sees_ahead(k: mx.array, v: mx.array, seen: mx.array, T: int) -> Any:
    return k, v, mx.ones_like(seen)


def _offset_stuck(patient: Patient, block: int) -> None:
    """Every decoded token takes the place of the one before it."""

    def wrap(update: Any, k: mx.array, v: mx.array, offset: Any) -> Any:
        found = update(k, v)
        if k.shape[2] == 1 and not isinstance(offset, mx.array) and offset > 0:
            update.__self__.offset = offset
        return found

    if not patient.is_engine and any(b.attention.window for b in patient.spec.blocks):
        raise NotApplicable("mlx-lm's ring keeps no offset of this kind")
    for i in range(len(patient.blocks)):
        patient.caching(i, wrap)


def _shared(patient: Patient, block: int) -> None:
    """A block finds in its cache what the block before it wrote there."""
    block = max(block, 1)
    if block >= len(patient.blocks):
        raise NotApplicable("one block")
    a, b = (patient.spec.blocks[i].attention for i in (block - 1, block))
    if (a.window, a.kv_heads, a.head_dim) != (b.window, b.kv_heads, b.head_dim):
        raise NotApplicable("the block before is of another kind")
    theirs: list[mx.array] = []

    def keep(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
        theirs[:] = [k, v]
        return attend(q, k, v, scale, mask)

    def use(attend: Any, q: Any, k: Any, v: Any, scale: float, mask: Any) -> mx.array:
        past = k.shape[2] - q.shape[2]
        k, v = (
            mx.concatenate([other[:, :, :past], mine[:, :, past:]], axis=2)
            for other, mine in zip(theirs, (k, v), strict=True)
        )
        return attend(q, k, v, scale, mask)

    patient.attention(block - 1, keep)
    patient.attention(block, use)


def _fault(name: str, what: str, inject: Inject, **more: Any) -> Fault:
    return Fault(name, what, inject, "attn", "cache", **more)


FAULTS = (
    _fault(
        "whole-buffer",
        "the part of the buffer that is not filled is attended to",
        _past(_whole_buffer, decoding=True),
        source="C01",
    ),
    _fault(
        "ring-order",
        "a window's tokens are not put back in time order",
        _past(_out_of_order, window=True, decoding=False),
        source="C04",
    ),
    _fault("half-precision", "kept in bfloat16", _past(_half_precision), source="C16"),
    _fault(
        "first-dropped",
        "the first token is not seen when decoding",
        _past(_without_oldest, window=False, decoding=True),
    ),
    _fault("short-window", "a window keeps one token too few", _short_window),
    _fault("values-behind", "values are one token behind keys", _past(_values_behind)),
    _fault(
        "newest-unwritten",
        "the newest token's key is not written when decoding",
        _past(_newest_unwritten, decoding=True),
    ),
    _fault(
        "newest-dropped",
        "a decoded token does not see itself",
        _past(_newest_dropped, decoding=True),
    ),
    _fault(
        "forgets",
        "every chunk begins with an empty cache",
        _everywhere(_past(_forgets, decoding=False)),
    ),
    _fault(
        "no-mask",
        "a chunk after the first sees its own later tokens",
        _past(_chunk_sees_ahead, decoding=False),
        source="A08",
    ),
    _fault("offset-stuck", "the offset is not advanced when decoding", _offset_stuck),
    _fault("shared", "a block's cache is also the next one's", _shared),
    _fault(
        "past-order",
        "past tokens lie in another order, and the mask with them",
        _past(_order_and_mask),
        equivalent=True,
    ),
    _fault(
        "room-masked",
        "what is not filled is returned, and masked",
        _past(_room_masked),
        equivalent=True,
    ),
)
