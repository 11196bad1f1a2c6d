"""Weights on disk: names -> lazy arrays, and back.

`read_weights` and `write_weights` know two file formats and no architecture; names of Meta's layout
are given as transformers'. `arrange` turns the names of a checkpoint into the engine's. Files are
checked before MLX maps them, since a lazy read would fail much later, in the middle of a forward
pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import CorruptWeights, UnsupportedFormat
from ..files import ModelFiles, pickled
from ..whole import replacing
from . import meta, npz, safetensors
from .arrange import arrange
from .npz import CONFIG_KEY

__all__ = ["CONFIG_KEY", "arrange", "floating_dtypes", "read_weights", "shapes_of", "write_weights"]

_FORMATS = {".npz": npz, ".safetensors": safetensors}


def read_weights(files: ModelFiles) -> dict[str, mx.array]:
    """Every tensor of a model by its name in the file, unread until used.

    Raises CorruptWeights or UnsupportedFormat. An .npz is read through once, to check its sums.
    """
    tensors: dict[str, mx.array] = {}
    home: dict[str, str] = {}
    for path in files.weights:
        if path.suffix not in _FORMATS:
            raise pickled(path)
        for name, array in _FORMATS[path.suffix].read(path).items():
            if name in tensors:
                raise CorruptWeights(
                    f"tensor {name!r} is in both {home[name]} and {path.name} of {path.parent}: "
                    "remove the file that does not belong to the model"
                )
            tensors[name], home[name] = array, path.name
    index = files.index or {}
    astray = [name for name, shard in index.items() if home.get(name) != shard]
    if astray:
        others = f" ({len(astray) - 1} more)" if len(astray) > 1 else ""
        raise CorruptWeights(
            f"tensor {astray[0]!r}{others} is not in shard {index[astray[0]]} of "
            f"{files.folder}, where the index places it: fetch index and shards again"
        )
    if meta.EMBEDDING in tensors:
        return meta.normal_tensors(tensors, files.config, str(files.folder))
    return tensors


def shapes_of(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape in some weight files, of which only headers are read."""
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        if path.suffix in _FORMATS:
            found |= _FORMATS[path.suffix].shapes(path)
    return found


def floating_dtypes(paths: Iterable[Path]) -> set[str]:
    """The floating-point dtypes in some weight files, of which only headers are read."""
    found = (_FORMATS[path.suffix].floating(path) for path in paths if path.suffix in _FORMATS)
    return set().union(*found)


def write_weights(
    path: str | Path, tensors: Mapping[str, mx.array], config: Mapping[str, Any] | None = None
) -> None:
    """Write tensors to an .npz or .safetensors file, whole or not at all.

    `config` goes inside an .npz under CONFIG_KEY; a .safetensors file has no place for it. Raises
    UnsupportedFormat for another suffix, or a dtype the format cannot hold.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise UnsupportedFormat(f"{path} has suffix {path.suffix!r}: write .npz or .safetensors")
    with replacing(path) as temporary:
        _FORMATS[path.suffix].write(temporary, tensors, config)
