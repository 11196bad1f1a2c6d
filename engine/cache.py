"""Keys and values of past tokens: one `Cache` per block, bounded by the block's window.

Both kinds keep tokens in time order, so that nothing has to be put back in order before it is
used. This module knows shapes and windows, not models.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from .spec import DecoderSpec

STEP = 256  # tokens of room added at a time, so that decoding writes in place


class Cache:
    """Keys and values (B, K, S, D) of one block.

    `offset` counts every token ever seen. With a `window` W only the last W-1 are kept between
    calls: the next token sees itself and them. `padding` (B,) says how many tokens in front of
    each row are none of it; None where no row has any.
    """

    def __init__(self, window: int | None = None, padding: mx.array | None = None) -> None:
        self.window, self.padding = window, padding
        self.offset = 0
        self._keys = self._values = mx.zeros((1, 1, 0, 1))  # (B, K, room, D) once used
        self._start = 0  # of the kept tokens in the buffers
        self._end = 0

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append T tokens; return all that the T queries may see, the T new ones last."""
        T = keys.shape[2]
        self._make_room(keys, values)
        first = self._end
        self._end += T
        self.offset += T
        self._keys[:, :, first : self._end] = keys
        self._values[:, :, first : self._end] = values
        seen = slice(self._start, self._end)
        found = self._keys[:, :, seen], self._values[:, :, seen]
        if self.window is not None:
            self._start = max(self._start, self._end - (self.window - 1))
        return found

    @property
    def positions(self) -> int | mx.array:
        """Where the next token stands: the offset, or (B,) one per row that begins after padding.

        Negative for tokens that are padding themselves.
        """
        return self.offset if self.padding is None else self.offset - self.padding

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, room included."""
        return self._keys.nbytes + self._values.nbytes

    def _make_room(self, keys: mx.array, values: mx.array) -> None:
        T = keys.shape[2]
        if self._end + T <= self._keys.shape[2]:
            return
        kept = self._end - self._start
        room = -(-(kept + T) // STEP) * STEP
        self._keys = self._moved(self._keys, keys, room)
        self._values = self._moved(self._values, values, room)
        self._start, self._end = 0, kept

    def _moved(self, old: mx.array, new: mx.array, room: int) -> mx.array:
        """A buffer of `room` tokens that begins with the kept ones."""
        B, K, _, D = new.shape
        buffer = mx.zeros((B, K, room, D), new.dtype)
        if self._end > self._start:
            buffer[:, :, : self._end - self._start] = old[:, :, self._start : self._end]
        return buffer


def make_cache(spec: DecoderSpec, padding: Sequence[int] | None = None) -> list[Cache]:
    """One empty cache per block.

    `padding` is for a batch of sequences of unequal length: how many tokens to leave out in front
    of each row.
    """
    rows = mx.array(list(padding)) if padding is not None and any(padding) else None
    return [Cache(block.attention.window, rows) for block in spec.blocks]
