"""One process of several that run a model together: who the others are, and what passes between.

Processes are started by `mlx.launch`, MPI or `launch.py`, over whichever backend of
`mx.distributed` they set up. All run the same program. What they add up is gathered and added in
the order of ranks, in float32: every rank has the same bits, wherever a value stands in its array,
where a ring that adds pieces would have another order for each. docs/RANKS.md has figures.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from .errors import BackendUnavailable, RankLost, RanksUnavailable

PATIENCE = "ENGINE_RANK_PATIENCE"  # seconds without a step after which a rank gives up
_PATIENCE = 300.0
_BACKENDS = ("ring", "mpi", "nccl", "jaccl")  # whose errors begin with their name in brackets


def join() -> Ranks | None:
    """The group this process was started in; None where it is alone in it."""
    try:
        group = mx.distributed.init(strict=True)
    except (RuntimeError, ValueError) as cause:
        raise BackendUnavailable(
            f"the other ranks are not reached ({' '.join(str(cause).split())}): check the hosts "
            "and ports that mlx.launch was given"
        ) from None
    return Ranks(group) if group.size() > 1 else None


class Ranks:
    """A group of `size` processes, of which this is number `rank`. What it returns is lazy."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self._group = group
        self.rank, self.size = group.rank(), group.size()
        self._heard = time.monotonic()
        self._last: mx.array | None = None  # exchange

    def gathered(self, x: mx.array) -> mx.array:
        """(N, ...): what every rank has of the same shape.

        MLX runs a graph in an order that its shape decides, and ranks may have other shapes: with
        uneven shares of heads, attention is other operations. So each exchange waits for the one
        before, and all ranks have them in the order of the program.
        """
        self._heard = time.monotonic()
        if self._last is not None:
            x = mx.depends(x, self._last)
        self._last = mx.distributed.all_gather(x[None], group=self._group)
        return self._last

    def total(self, x: mx.array) -> mx.array:
        """The sum over ranks, rounded once."""
        wide = mx.float32 if mx.issubdtype(x.dtype, mx.floating) else x.dtype
        first, *others = (part.astype(wide) for part in self.gathered(x))
        for part in others:
            first = first + part
        return first.astype(x.dtype)

    def side_by_side(self, x: mx.array, widths: Sequence[int]) -> mx.array:
        """Parts of the last axis, of these widths by rank, as one array."""
        room = [(0, 0)] * (x.ndim - 1) + [(0, max(widths) - x.shape[-1])]
        parts = self.gathered(mx.pad(x, room))
        return mx.concatenate([parts[i][..., :n] for i, n in enumerate(widths)], axis=-1)

    def numbers(self, mine: int) -> list[int]:
        """A number below 2**31 of every rank, read."""
        return self.gathered(mx.array([mine], mx.int32))[:, 0].tolist()  # type: ignore[return-value]

    def bytes_each(self, mine: int) -> list[int]:
        """A number of bytes of every rank, read; whole KiB."""
        return [each << 10 for each in self.numbers(mine >> 10)]

    def told(self, text: str | None = None) -> str:
        """The text of rank 0 on every rank, read; the others give none."""
        data = (text or "").encode()
        size = self.numbers(len(data))[0]
        if not size:
            return ""
        mine = mx.array(np.frombuffer(data.ljust(size, b"\0")[:size], np.uint8))
        return np.array(self.gathered(mine)[0]).tobytes().decode()

    def agree(self, what: str, value: str) -> None:
        """Raise RanksUnavailable unless all ranks have the same of something. All wait here."""
        found = self.numbers(zlib.crc32(value.encode()) >> 1)
        other = next((rank for rank, each in enumerate(found) if each != found[0]), None)
        if other is not None:
            raise RanksUnavailable(
                f"rank {other} has another {what} than rank 0: give all ranks the same files, "
                "options and versions"
            )

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn MLX's error of a lost connection into RankLost."""
        try:
            yield
        except RuntimeError as cause:
            if (lost := self.lost(cause)) is None:
                raise
            raise lost from None

    def lost(self, cause: BaseException) -> RankLost | None:
        """What an error of MLX says of the other ranks, where it is about them."""
        words = " ".join(str(cause).split())
        if not words.startswith(tuple(f"[{name}" for name in _BACKENDS)):
            return None
        return RankLost(
            f"rank {self.rank} of {self.size} has lost another ({words}): see what that one said, "
            "and start all of them again"
        )

    def watch(self) -> None:
        """End this process, with a line, once the others have kept it waiting for too long.

        A rank that ended is noticed at once; this is for one that hangs, or whose machine is gone.
        """
        patience = float(os.environ.get(PATIENCE, _PATIENCE))
        self._heard = time.monotonic()

        def look() -> None:
            while time.monotonic() - self._heard < patience:
                time.sleep(min(1.0, patience / 4))
            print(
                f"engine: rank {self.rank} of {self.size} has waited {patience:.0f} s for the "
                f"others: one hangs or its machine is gone ({PATIENCE} sets how long to wait)",
                file=sys.__stderr__,
                flush=True,
            )
            os._exit(2)

        threading.Thread(target=look, name="ranks", daemon=True).start()
