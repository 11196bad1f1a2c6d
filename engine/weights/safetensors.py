"""Safetensors files: 8 bytes of header length, a JSON header, then the tensors end to end.

The header is checked here before MLX maps the file. The rules are the format's own
(https://github.com/huggingface/safetensors#format): known dtypes, sizes that match their offsets,
no hole, no overlap, nothing after the last tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from ..errors import CorruptWeights, UnsupportedFormat, one_line

# Bytes per element of the dtypes MLX reads as what they are; F8 it reads as bytes, F64 not.
_DTYPES = (
    ("BOOL", 1), ("U8", 1), ("I8", 1), ("U16", 2), ("I16", 2), ("F16", 2), ("BF16", 2),
    ("U32", 4), ("I32", 4), ("F32", 4), ("U64", 8), ("I64", 8), ("C64", 8),
)  # fmt: skip
_SIZES = dict(_DTYPES)
_FLOATING = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_MAX_HEADER = 100_000_000  # the format's own limit


def read(path: Path) -> dict[str, mx.array]:
    """Name -> lazy array. Raises CorruptWeights or UnsupportedFormat."""
    _check(path)
    try:
        return cast(dict[str, mx.array], mx.load(str(path)))
    except (RuntimeError, ValueError) as cause:
        raise CorruptWeights(f"MLX cannot read {path} ({one_line(cause)})") from None


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape, of which the header alone is read. Raises CorruptWeights."""
    _check(path)
    header, _ = _header(path)
    return {name: tuple(e["shape"]) for name, e in header.items() if name != "__metadata__"}


def floating(path: Path) -> set[str]:
    """The floating-point dtypes in a file, of which the header alone is read."""
    _check(path)
    header, _ = _header(path)
    dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    return {_FLOATING[dtype] for dtype in dtypes & _FLOATING.keys()}


def places(path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Name -> the byte that a tensor begins at, and its shape; the header alone is read."""
    header, size = _header(path)
    begin = path.stat().st_size - size
    return {
        name: (begin + entry["data_offsets"][0], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def write(path: Path, tensors: Mapping[str, mx.array], config: Mapping[str, Any] | None) -> None:
    """Write all tensors to one file. `config` has no place in this format."""
    for name, array in tensors.items():
        if array.dtype == mx.float64:
            raise UnsupportedFormat(
                f"tensor {name!r} is float64, which MLX does not write to safetensors: cast it to "
                "float32, or write .npz"
            )
    # To a file of Python's, whose errors say what the system said. transformers asks for a format
    # of which it knows that the names are PyTorch's.
    with path.open("wb") as file:
        mx.save_safetensors(file, dict(tensors), {"format": "pt"})


def _check(path: Path) -> None:
    """Raise unless the header is whole and describes exactly the bytes that follow it."""
    header, size = _header(path)
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            numbers = [*shape, start, end]
        except (TypeError, KeyError, ValueError):
            raise _corrupt(path, f"its header does not describe tensor {name!r}") from None
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise _corrupt(path, f"tensor {name!r} has shape {shape} at offsets {start}, {end}")
        if dtype not in _SIZES:
            raise UnsupportedFormat(
                f"tensor {name!r} in {path} has dtype {dtype!r}: the engine reads "
                f"{', '.join(_SIZES)}; store it as one of these"
            )
        if end - start != math.prod(shape) * _SIZES[dtype]:
            raise _corrupt(path, f"tensor {name!r} is {dtype} {shape}, but has {end - start} bytes")
        spans.append((start, end, name))
    position = 0
    for start, end, name in sorted(spans):
        if start != position:
            raise _corrupt(path, f"tensor {name!r} starts at byte {start}, not {position}")
        position = end
    if position != size:
        state = "truncated" if size < position else "followed by other bytes"
        raise _corrupt(path, f"it is {state}: {position} bytes of tensors expected, {size} found")


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header and the number of bytes after it."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size - 8
            length = int.from_bytes(file.read(8), "little")
            if size < 0 or length > min(size, _MAX_HEADER):
                raise _corrupt(
                    path,
                    f"it is truncated or no safetensors file: {size + 8} bytes, of which the "
                    f"header claims {length}",
                )
            text = file.read(length)
    except OSError as cause:
        raise CorruptWeights(f"{path} cannot be read ({cause.strerror}): check the file") from None
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as cause:
        raise _corrupt(path, f"its header is not valid JSON ({cause})") from None
    if not isinstance(header, dict):
        raise _corrupt(path, "its header is not a JSON object")
    return header, size - length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _corrupt(path: Path, what: str) -> CorruptWeights:
    return CorruptWeights(f"{path} is corrupt: {what}; fetch or convert it again")
