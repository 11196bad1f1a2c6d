"""What the MLX backends share: arrays to numpy, sites gathered lazily and evaluated together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from engine.names import Name
from engine.weights.quantised import Packing

from ..types import CONTEXT, KEY, LOGITS, QUERY, Site
from . import Observe, rows


def to_numpy(array: mx.array) -> np.ndarray:
    """An MLX array as numpy, exactly; bfloat16 and float16 become float32."""
    if array.dtype in (mx.bfloat16, mx.float16):
        array = array.astype(mx.float32)
    return np.array(array)


class Gathered:
    """Sites of one forward pass, kept lazy until it is over, so that watching changes nothing.

    `feed` holds what replaces the value at a site: arrays (T, features), numpy or MLX.
    """

    def __init__(self, length: int, feed: Mapping[Site, Any] | None = None) -> None:
        self._length, self._feed = length, feed or {}
        self.feeds = bool(feed)
        self.seen: dict[Site, mx.array] = {}

    def see(self, site: Site, value: mx.array) -> mx.array:
        """Keep the value at a site (1, T, ...); give what is to be used in its place."""
        self.seen[site] = value
        if site not in self._feed or self._feed[site].size != value.size:
            return value
        fed = mx.array(self._feed[site]).astype(value.dtype)
        return fed.reshape(value.shape) if value.ndim < 4 else _unrows(fed, value, self._length)

    def part(self, site: Site, value: mx.array, columns: np.ndarray) -> mx.array:
        """What is to be used for one of the pieces (1, T, D) a site's value is made of, the one
        that holds these of its features."""
        if site not in self._feed:
            return value
        return mx.array(self._feed[site]).astype(value.dtype)[None][..., mx.array(columns)]

    def fits(self, value: mx.array) -> bool:
        """Whether a value is (1, T, ...) or (1, H, T, D), so that it can be a site's."""
        shape = value.shape
        return len(shape) > 2 and shape[0] == 1 and self._length in shape[1:-1]

    def tell(self, observe: Observe | None, logits: mx.array) -> np.ndarray:
        """Evaluate everything at once, tell `observe`, return the logits (T, V)."""
        mx.eval(logits, *self.seen.values())
        found = to_numpy(logits)[0]
        if observe is not None:
            for site, value in self.seen.items():
                observe(site, rows(to_numpy(value), self._length))
            observe(LOGITS, found)
        return found


def _unrows(fed: mx.array, like: mx.array, length: int) -> mx.array:
    """(T, H*D) -> (1, T, H, D) or (1, H, T, D), whichever `like` is."""
    if like.shape[1] != length and like.shape[2] == length:
        return fed.reshape(1, length, like.shape[1], like.shape[3]).transpose(0, 2, 1, 3)
    return fed.reshape(like.shape)


def columns_of(name: Name, shapes: Mapping[str, tuple[int, ...]]) -> list[np.ndarray]:
    """Which features of a fused module's output each of its targets makes, by their own shapes."""
    widths = [shapes[f"{target}.weight"][0] // name.groups for target in name.targets]
    starts = np.cumsum([0, *widths])
    group = np.arange(name.groups)[:, None] * starts[-1]
    return [
        (group + start + np.arange(width)).ravel()
        for start, width in zip(starts, widths, strict=False)
    ]


def without_leaf(part: str) -> str:
    """The module a part belongs to, where it is a point inside attention."""
    owner, _, leaf = part.rpartition(".")
    return owner if leaf in (QUERY, KEY, CONTEXT) else part


def in_chunks(model: Any, ids: mx.array, chunks: Sequence[int]) -> mx.array:
    """Logits (B, T, V) of ids (B, T) fed in pieces of T; `model(ids)` keeps its own cache."""
    parts, start = [], 0
    for size in chunks:
        parts.append(model(ids[:, start : start + size]))
        start += size
    return mx.concatenate(parts, axis=1)


def left_padded(sequences: Sequence[Sequence[int]]) -> tuple[mx.array, list[int]]:
    """Ids (B, T) of sequences that all end at the right, and how many pads each has in front."""
    longest = max(map(len, sequences))
    padding = [longest - len(sequence) for sequence in sequences]
    rows = [[0] * pads + list(ids) for pads, ids in zip(padding, sequences, strict=True)]
    return mx.array(rows), padding


def unpadded(logits: mx.array, padding: Sequence[int]) -> list[np.ndarray]:
    """Logits (B, T, V) as one array (T_i, V) per row, pads left out."""
    return [to_numpy(logits[row, pads:]) for row, pads in enumerate(padding)]


def weights_of(module: Any, dtype: str) -> dict[str, mx.array]:
    """Every parameter of an mlx module by its path; a packed matrix as it is once unpacked.

    What is unpacked is rounded once, from float32 to `dtype`.
    """
    from mlx.utils import tree_flatten

    from engine.model import DTYPES

    found: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    for path, inner in module.named_modules():
        if how := packing_of(inner):
            parts = {part: found.pop(f"{path}.{part}") for part in how.parts}
            found[f"{path}.weight"] = how.unpack(parts).astype(DTYPES[dtype])
    return found


def packing_of(module: Any) -> Packing | None:
    """How the matrix of a module is packed, the engine's or one of mlx.nn's kind."""
    if not isinstance(module, nn.Module) or "scales" not in module:
        return None
    packed: Any = module
    return getattr(packed, "packing", None) or Packing(packed.group_size, packed.bits, packed.mode)


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
