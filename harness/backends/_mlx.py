"""What the MLX backends share: arrays to numpy, sites gathered lazily and evaluated together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from ..types import Site
from . import Observe, rows


def to_numpy(array: mx.array) -> np.ndarray:
    """An MLX array as numpy, exactly; bfloat16 and float16 become float32."""
    if array.dtype in (mx.bfloat16, mx.float16):
        array = array.astype(mx.float32)
    return np.array(array)


class Gathered:
    """Sites of one forward pass, kept lazy until it is over, so that watching changes nothing."""

    def __init__(self, length: int, feed: Sequence[np.ndarray] | None) -> None:
        self._length, self._feed = length, feed
        self._seen: list[tuple[Site, mx.array]] = []

    def see(self, site: Site, value: mx.array) -> None:
        self._seen.append((site, value))

    def boundary(self, site: Site, value: mx.array, k: int) -> mx.array:
        """See what enters block k (or the final norm); give the feed in its place if there is."""
        self.see(site, value)
        if self._feed is None:
            return value
        return mx.array(self._feed[k]).astype(value.dtype)[None]

    def tell(self, observe: Observe | None, logits: mx.array) -> np.ndarray:
        """Evaluate everything at once, tell `observe`, return the logits (T, V)."""
        mx.eval(logits, *(value for _, value in self._seen))
        if observe is not None:
            for site, value in self._seen:
                observe(site, rows(to_numpy(value), self._length))
            observe(Site("logits", None), to_numpy(logits)[0])
        return to_numpy(logits)[0]


def in_chunks(model: Any, tokens: Sequence[int], chunks: Sequence[int]) -> np.ndarray:
    """Logits (T, V) of `tokens` fed in pieces; `model(ids, start)` keeps its own cache."""
    parts, start = [], 0
    for size in chunks:
        parts.append(model(mx.array([list(tokens[start : start + size])])))
        start += size
    return to_numpy(mx.concatenate(parts, axis=1))[0]


def weights_of(module: Any) -> dict[str, mx.array]:
    """Every parameter of an mlx module by its path."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(module.parameters()))


def as_mlx(value: Any) -> mx.array:
    """A torch, numpy or mlx parameter as an mlx array, bit for bit."""
    if isinstance(value, mx.array):
        return value
    if hasattr(value, "detach"):  # torch
        import torch

        value = value.detach().cpu().contiguous()
        if value.dtype == torch.bfloat16:
            return mx.array(value.view(torch.uint16).numpy()).view(mx.bfloat16)
        value = value.numpy()
    return mx.array(value)
