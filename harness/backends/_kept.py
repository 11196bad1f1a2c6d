"""The engine's own cache, watched: what it was given, and what it gives back of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from engine.cache import Cache
from engine.weights.quantised import Packing

from ._mlx import to_numpy

NAMES = ("keys", "values")


@dataclass(frozen=True)
class Kept:
    """Keys or values (K, T, D) of one block, as the cache took them and as it gave them back."""

    block: int
    name: str
    given: np.ndarray
    found: np.ndarray


class Watched(Cache):
    """A `Cache` of one sequence that remembers every token given to it."""

    def __init__(self, window: int | None, packing: Packing) -> None:
        super().__init__(window, packing=packing)
        self._seen: list[tuple[tuple[mx.array, mx.array], tuple[mx.array, mx.array]]] = []

    def append(self, keys: mx.array, values: mx.array) -> list[mx.array]:
        """As `Cache.append`, which all that feeds a cache goes through."""
        found, T = super().append(keys, values), keys.shape[2]
        new = self._whole([part[:, :, -T:] for part in found], keys.dtype)
        self._seen.append(((keys, values), new))
        return found

    def kept(self, block: int) -> Iterator[Kept]:
        """Keys, then values."""
        for i, name in enumerate(NAMES):
            given, found = (
                mx.concatenate([pair[side][i][0] for pair in self._seen], axis=1) for side in (0, 1)
            )
            yield Kept(block, name, to_numpy(given), to_numpy(found))
