"""Which keys a query may see: causality, windows, chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import Fault, NotApplicable
from ._patient import Call, Patient, seen_keys

Inject = Callable[[Patient, int], None]
Change = Callable[[Any, int, int], Any]  # mask, queries T, keys S -> mask


def _masked(change: Change) -> Inject:
    """A fault that attends with `change(mask, T, S)` in place of the mask."""

    def inject(patient: Patient, block: int) -> None:
        def attended(
            attend: Call, q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Any
        ) -> mx.array:
            return attend(q, k, v, scale, change(mask, q.shape[2], k.shape[2]))

        patient.attention(block, attended)

    return inject


def _windowed(change: Callable[[int], Change]) -> Inject:
    """A fault of a block that has a window; `change(window)` makes it."""

    def inject(patient: Patient, block: int) -> None:
        window = patient.spec.blocks[block].attention.window
        if window is None:
            raise NotApplicable("the block has no window")
        _masked(change(window))(patient, block)

    return inject


def _unwindowed(change: Change) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        if patient.spec.blocks[block].attention.window is not None:
            raise NotApplicable("the block has a window")
        _masked(change)(patient, block)

    return inject


def _numbers(change: Change) -> Inject:
    """A mask of numbers: attention that caps its logits asks for booleans."""

    def inject(patient: Patient, block: int) -> None:
        if patient.heads_spec(block).softcap is not None:
            raise NotApplicable("attention logits are capped")
        _masked(change)(patient, block)

    return inject


def _places(queries: int, keys: int) -> tuple[mx.array, mx.array]:
    """Places of queries (T, 1) and keys (1, S), where the last query is the last key."""
    return mx.arange(keys - queries, keys)[:, None], mx.arange(keys)[None]


def causal(queries: int, keys: int, window: int | None = None) -> mx.array:
    """(T, S): keys that are not after the query, within the window."""
    at, key = _places(queries, keys)
    seen = key <= at
    return seen if window is None else seen & (key > at - window)


def _of_window(by: int) -> Callable[[int], Change]:
    def make(window: int) -> Change:
        def change(mask: Any, queries: int, keys: int) -> Any:
            return causal(queries, keys, window + by)

        return change

    return make


def _no_window(window: int) -> Change:
    return lambda mask, queries, keys: causal(queries, keys)


def _no_window_when_decoding(window: int) -> Change:
    """Undone by a cache that forgets what has left the window, so that many keys are a batch."""
    return lambda mask, queries, keys: None if queries == 1 else mask


def _window_of_8(mask: Any, queries: int, keys: int) -> Any:
    return causal(queries, keys, 8)


def _not_causal(mask: Any, queries: int, keys: int) -> Any:
    return None


def _not_itself(mask: Any, queries: int, keys: int) -> Any:
    """Every query but the first sees only what is before it."""
    at, key = _places(queries, keys)
    return seen_keys(mask, queries, keys) & ((key < at) | (at == 0))


def _one_ahead(mask: Any, queries: int, keys: int) -> Any:
    at, key = _places(queries, keys)
    return seen_keys(mask, queries, keys) | (key == at + 1)


def _not_the_first(mask: Any, queries: int, keys: int) -> Any:
    """The first key is hidden from all but the first query."""
    at, key = _places(queries, keys)
    return seen_keys(mask, queries, keys) & ((key > 0) | (at == 0))


def _without_offset(mask: Any, queries: int, keys: int) -> Any:
    """The mask of a later chunk as if it were the first: its queries see the oldest keys only."""
    if queries == keys or queries == 1:
        return mask
    return mx.arange(keys)[None] <= mx.arange(queries)[:, None]


def _added(value: float) -> Change:
    """The mask as numbers that are added to the logits: `value` where a key is hidden."""

    def change(mask: Any, queries: int, keys: int) -> Any:
        seen = seen_keys(mask, queries, keys)
        return mx.where(seen, 0.0, value).astype(mx.float32)

    return change


def _as_numbers(mask: Any, queries: int, keys: int) -> Any:
    """true and false added to the logits as 1 and 0."""
    return seen_keys(mask, queries, keys).astype(mx.float32)


def _shared_by_all(patient: Patient, block: int) -> None:
    """All blocks attend with the window of the first one, or none."""
    windows = [b.attention.window for b in patient.spec.blocks]
    if len(set(windows)) < 2:
        raise NotApplicable("all blocks have the same window")
    block = next(i for i, window in enumerate(windows) if window != windows[0])
    first = windows[0]
    _masked(lambda mask, queries, keys: causal(queries, keys, first))(patient, block)


def _exchanged(patient: Patient, block: int) -> None:
    """Blocks with a window have none, and the others have it."""
    windows = [b.attention.window for b in patient.spec.blocks]
    size = next((window for window in windows if window is not None), None)
    if size is None or None not in windows:
        raise NotApplicable("no blocks of both kinds")
    for i, window in enumerate(windows):
        other = size if window is None else None
        change = _exchange(other)
        _masked(change)(patient, i)


def _exchange(window: int | None) -> Change:
    return lambda mask, queries, keys: causal(queries, keys, window)


FAULTS = (
    Fault("window-one-more", "a query sees one key beyond the window", _windowed(_of_window(1)),
          "attn", source="A04"),
    Fault("window-one-less", "a query misses the last key of the window",
          _windowed(_of_window(-1)), "attn", source="A04"),
    Fault("window-ignored", "the window of one block is ignored", _windowed(_no_window), "attn"),
    Fault("window-of-the-first", "a block attends with the window of the first one",
          _shared_by_all, "attn", "blocks", source="A07"),
    Fault("windows-exchanged", "local and global blocks have each other's mask", _exchanged,
          "attn", "blocks", source="A07"),
    Fault("window-added", "a window of 8 where attention is full", _unwindowed(_window_of_8),
          "attn"),
    Fault("no-offset", "the mask of a later chunk begins at 0", _masked(_without_offset), "attn",
          "cache", source="A08"),
    Fault("as-numbers", "the boolean mask is added as 0 and 1", _numbers(_as_numbers), "attn",
          source="A10"),
    Fault("not-causal", "every query sees every key", _masked(_not_causal), "attn"),
    Fault("not-itself", "a token does not see itself", _masked(_not_itself), "attn"),
    Fault("one-ahead", "a token sees the next one", _masked(_one_ahead), "attn"),
    Fault("not-the-first", "the first token is hidden", _masked(_not_the_first), "attn"),
    Fault("minus-ten", "hidden keys get -10 in place of minus infinity", _numbers(_added(-10.0)),
          "attn"),
    Fault("minus-a-billion", "hidden keys get -1e9: the same in any dtype used",
          _numbers(_added(-1e9)), "attn", equivalent=True),
)  # fmt: skip
