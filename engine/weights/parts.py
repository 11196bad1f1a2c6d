"""Parts of tensors, read without the rest: what one rank has of a checkpoint.

A part of a tensor in a safetensors file is copied from the mapped file, so that nothing else of it
is read but for the pages that rows share. Any other tensor (in an .npz, or made of several) is
computed as a whole first, one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..files import ModelFiles
from ..sharding import Part, Share
from . import safetensors


class Parts:
    """The parts of a share; `tensors` are those of the model's files, by their names there."""

    def __init__(self, share: Share, files: ModelFiles, tensors: Mapping[str, mx.array]) -> None:
        self._parts = share.parameters
        # By identity: a tensor that was renamed is the same one, one made of it is another.
        self._places: dict[int, tuple[Path, int, tuple[int, ...]]] = {}
        self._kept = [*tensors.values()]  # so that no other comes to have its identity
        for path in files.weights:
            if path.suffix == ".safetensors":
                for name, (begin, shape) in safetensors.places(path).items():
                    if name in tensors:
                        self._places[id(tensors[name])] = path, begin, shape

    def of(self, path: str) -> Part | None:
        """Which part of a parameter the rank has; None for all of it."""
        return self._parts.get(path)

    def read(self, tensor: mx.array, axis: int, ranges: Sequence[tuple[int, int]]) -> mx.array:
        """A copy of some ranges of an axis, which is counted from the end."""
        if id(tensor) not in self._places:
            index = np.concatenate([np.arange(*each) for each in ranges])
            part = mx.take(tensor, mx.array(index), axis=axis)
            mx.eval(part)
            return part
        path, begin, shape = self._places[id(tensor)]
        kind = np.dtype(f"u{tensor.dtype.size}")
        file = np.memmap(path, kind, "r", begin, shape)
        whole = (slice(None),) * (len(shape) + axis)
        part = np.concatenate([file[(*whole, slice(*each))] for each in ranges], axis=axis)
        return mx.array(part).view(tensor.dtype)
