"""Keys and values of past tokens: one `Cache` per block, bounded by the block's window.

Both kinds keep tokens in time order, so that nothing has to be put back in order before it is
used. Rows of different length stand in one buffer with padding in front (`Cache`), or each in its
own (`Apart`); `stacked` and `take` are how they come and go. What is kept may be packed, in fewer
bits: `Packing` says how. This module knows shapes and windows, not models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache

import mlx.core as mx

from .spec import DecoderSpec
from .weights.quantised import Packing

STEP = 256  # tokens of room added at a time, so that decoding writes in place
# Where a buffer has room for a multiple of 256 tokens, MLX's attention on CUDA (mlx 0.32.4, one
# query, 16 bits, 256 keys or more) takes a slice of it for one that begins at its start, which that
# of a window does not; and whether it does depends on what was allocated before.
# benchmarks/decode_attention.py shows both.
SPARE = 8


class Cache:
    """Keys and values (B, K, S, D) of one block.

    `offset` counts every token ever seen. With a `window` W only the last W-1 are kept between
    calls: the next token sees itself and them. `pads`, as an array `padding` (B,), says how many
    tokens in front of each row are none of it; None where no row has any. With a `packing` both are
    kept packed, each token by itself, and given back rounded to that, however they were fed.
    """

    def __init__(
        self,
        window: int | None = None,
        padding: Sequence[int] | None = None,
        packing: Packing | None = None,
    ) -> None:
        self.window, self.packing = window, packing
        self.pads = tuple(padding) if padding is not None and any(padding) else None
        self.padding = None if self.pads is None else mx.array(self.pads)
        self.offset = 0
        # (B, K, room, D) of keys and of values, or the parts of both where they are packed.
        self._buffers: list[mx.array] = []
        self._start = 0  # of the kept tokens in the buffers
        self._end = 0

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append T tokens; return all that the T queries may see, the T new ones last."""
        return self._whole(self.append(keys, values), keys.dtype)

    def append(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """As `update`, and return it as it is kept: keys and values, or the parts of both."""
        T, new = keys.shape[2], self._parts(keys, values)
        self._make_room(new)
        first = self._end
        self._end += T
        self.offset += T
        for buffer, part in zip(self._buffers, new, strict=True):
            buffer[:, :, first : self._end] = part
        seen = [buffer[:, :, self._start : self._end] for buffer in self._buffers]
        if self.window is not None:
            self._start = max(self._start, self._end - (self.window - 1))
        return seen

    @property
    def positions(self) -> int | mx.array:
        """Where the next token stands: the offset, or (B,) one per row that begins after padding.

        Negative for tokens that are padding themselves.
        """
        return self.offset if self.padding is None else self.offset - self.padding

    def lengths(self, count: int, whole: int | None = None) -> int | tuple[int, ...]:
        """How long the sequence is with `count` more tokens, or one number per padded row.

        `whole` is the length, padding included, that it will have once a prompt is fed to its end.
        """
        end = max(whole or 0, self.offset + count)
        return end if self.pads is None else tuple(end - n for n in self.pads)

    @property
    def held(self) -> int:
        """How many tokens are kept, which the next one sees."""
        return self._end - self._start

    @property
    def spans(self) -> mx.array:
        """(B, 2), int32: where what each row's last token sees begins and ends in the buffers."""
        first = 0 if self.window is None else max(0, self._end - self.window)
        dropped = self.offset - self._end  # tokens that are in no buffer
        pads = self.pads or (0,) * len(self._buffers[0])
        return _spans(threading.current_thread(), pads, dropped, first, self._end)

    @property
    def used(self) -> bool:
        """Whether it holds tokens."""
        return self.offset > 0

    @property
    def arrays(self) -> tuple[mx.array, ...]:
        """The buffers: evaluated, all that was fed is computed."""
        return tuple(self._buffers)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, room included."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def joined(self, others: Sequence[Cache]) -> Cache:
        """This cache's rows, if it was ever used, and those of others."""
        return stacked([self, *others] if self.offset else others)

    def take(self, rows: Sequence[int]) -> Cache:
        """A cache of some of the rows, in this order; padding that all of them have is gone."""
        pads = [self.pads[row] if self.pads else 0 for row in rows]
        taken = Cache(self.window, [n - min(pads) for n in pads], self.packing)
        taken.offset = self.offset - min(pads)
        kept = slice(max(self._start, self._end - taken.offset), self._end)
        at = mx.array(list(rows))
        taken._hold([(buffer[:, :, kept])[at] for buffer in self._buffers])
        return taken

    def last(self, count: int, row: int = 0) -> tuple[mx.array, ...] | None:
        """A copy of keys and values (1, K, count, D) of a row's last tokens, packed where they are.

        None where a window has dropped some of them. `count` is at most the length of the row.
        """
        if count > self._end:
            return None
        at = mx.arange(self._end - count, self._end)
        # A slice would keep the whole buffer alive, and from being written in place.
        return tuple(mx.take(buffer[row : row + 1], at, axis=2) for buffer in self._buffers)

    def compact(self) -> None:
        """Give back the room of what a window has dropped.

        After it the buffers are those that `restored` makes of the same tokens.
        """
        if self._start:
            kept = slice(self._start, self._end)
            self._hold([buffer[:, :, kept] for buffer in self._buffers])

    def _hold(self, kept: Sequence[mx.array]) -> None:
        """Have these (B, K, S, ...) in new buffers, and nothing else."""
        self._buffers = [_roomy([x], x.shape[2]) for x in kept]
        self._start, self._end = 0, kept[0].shape[2]

    def _parts(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """Keys and values (B, K, T, D) as they are kept."""
        if self.packing is None:
            return [keys, values]
        return [part for x in (keys, values) for part in self.packing.pack(x).values()]

    def _whole(self, parts: Sequence[mx.array], dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Keys and values (B, K, S, D) of what is kept."""
        if self.packing is None:
            keys, values = parts
            return keys, values
        names = self.packing.parts
        keys, values = (
            self.packing.unpack(dict(zip(names, some, strict=True))).astype(dtype)
            for some in (parts[: len(names)], parts[len(names) :])
        )
        return keys, values

    def _make_room(self, new: Sequence[mx.array]) -> None:
        T = new[0].shape[2]
        if self._buffers and self._end + T <= self._buffers[0].shape[2]:
            return
        kept = self.held
        room, old = _room(kept + T), self._buffers
        self._buffers = [mx.zeros((*x.shape[:2], room, x.shape[3]), x.dtype) for x in new]
        if kept:
            for buffer, before in zip(self._buffers, old, strict=True):
                buffer[:, :, :kept] = before[:, :, self._start : self._end]
        self._start, self._end = 0, kept


@lru_cache(maxsize=4)  # all blocks of one kind ask for the same
def _spans(
    thread: threading.Thread,  # whose stream makes it
    pads: tuple[int, ...],
    dropped: int,
    first: int,
    end: int,
) -> mx.array:
    return mx.array([(min(max(first, n - dropped), end - 1), end) for n in pads], mx.int32)


def make_cache(
    spec: DecoderSpec, padding: Sequence[int] | None = None, packing: Packing | None = None
) -> list[Cache]:
    """One empty cache per block.

    `padding` is for a batch of sequences of unequal length: how many tokens to leave out in front
    of each row. `packing` is one that `kv.packing_of` gave for this spec.
    """
    return [Cache(block.attention.window, padding, packing) for block in spec.blocks]


def stacked(caches: Sequence[Cache]) -> Cache:
    """The rows of several used caches of one block as one cache, padded in front to one length."""
    offset = max(cache.offset for cache in caches)
    pads = [
        n + offset - cache.offset
        for cache in caches
        for n in cache.pads or [0] * cache._buffers[0].shape[0]
    ]
    whole = Cache(caches[0].window, pads, caches[0].packing)
    whole.offset = offset
    # What a shorter row lacks here is padding: windows keep as much of every row, or all of it.
    kept = max(cache.held for cache in caches)
    parts = [[x[:, :, cache._start : cache._end] for x in cache._buffers] for cache in caches]
    whole._buffers = [_roomy(of_all, kept) for of_all in zip(*parts, strict=True)]
    whole._end = kept
    return whole


def restored(window: int | None, *held: mx.array, packing: Packing | None = None) -> Cache:
    """The cache of one sequence whose keys and values, all of them, are at hand as `last` gives
    them: (1, K, S, D), or packed."""
    cache = Cache(window, packing=packing)
    cache.offset = S = held[0].shape[2]
    first = 0 if window is None else max(0, S - (window - 1))
    cache._hold([part[:, :, first:] for part in held])
    return cache


def _roomy(parts: Sequence[mx.array], kept: int) -> mx.array:
    """A new buffer whose first `kept` tokens are those of all rows of `parts`, zeros in front."""
    _, K, _, D = parts[0].shape
    rows = sum(len(part) for part in parts)
    buffer, row = mx.zeros((rows, K, _room(kept), D), parts[0].dtype), 0
    for part in parts:
        buffer[row : row + len(part), :, kept - part.shape[2] : kept] = part
        row += len(part)
    return buffer


def _room(tokens: int) -> int:
    """How many tokens the buffer for so many has room for."""
    return max(-(-(tokens - SPARE) // STEP), 1) * STEP + SPARE


class Apart:
    """One block's caches of several sequences that are attended to one by one.

    A batch has `count` rows whoever is in it; those after the last sequence are blank. So no shape
    that a sequence meets depends on the others.
    """

    def __init__(self, rows: Sequence[Cache], count: int) -> None:
        self.rows, self._count = list(rows), count

    @property
    def positions(self) -> mx.array:
        """Where the next token of each of the `count` rows stands."""
        return mx.array(self.lengths(0))

    def lengths(self, count: int, whole: int | None = None) -> tuple[int, ...]:
        """How long each row is with `count` more tokens; they have no end in common."""
        blank = [0] * (self._count - len(self.rows))
        return tuple(offset + count for offset in [*(row.offset for row in self.rows), *blank])

    @property
    def used(self) -> bool:
        """Whether it holds sequences, which have tokens."""
        return bool(self.rows)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    def joined(self, others: Sequence[Cache]) -> Apart:
        """These sequences and others."""
        return Apart([*self.rows, *others], self._count)

    def take(self, rows: Sequence[int]) -> Apart:
        """Some of the sequences, in this order."""
        return Apart([self.rows[row] for row in rows], self._count)

    def last(self, count: int, row: int = 0) -> tuple[mx.array, ...] | None:
        """As `Cache.last`."""
        return self.rows[row].last(count)


AnyCache = Cache | Apart


def attended(attention: Callable[..., mx.array], cache: AnyCache, *arrays: mx.array) -> mx.array:
    """`attention(cache, *arrays)`, or one sequence after the other where they are apart.

    Blank rows come out as zeros.
    """
    if not isinstance(cache, Apart):
        return attention(cache, *arrays)
    found = [attention(row, *(x[i : i + 1] for x in arrays)) for i, row in enumerate(cache.rows)]
    blank = len(arrays[0]) - len(found)
    return mx.concatenate([*found, *[mx.zeros_like(found[0])] * blank])
