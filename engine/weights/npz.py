"""NumPy archives: a zip of .npy files, one per tensor, and optionally the configuration.

The entry `__config__` (CONFIG_KEY) is an array of uint8 that holds config.json as UTF-8, so that a
single file can be a whole model. Nothing here unpickles: an entry of Python objects is refused by
its header. Written archives are uncompressed and have no time stamps, so equal tensors give equal
bytes.
"""

from __future__ import annotations

import ast
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import mlx.core as mx
import numpy as np

from ..errors import CorruptWeights, InvalidConfig, UnsupportedFormat, one_line

CONFIG_KEY = "__config__"

_MAGIC = b"\x93NUMPY"
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError)
# What MLX reads: bool, integers, floats, complex64; V2 is its spelling of bfloat16.
_DESCR = re.compile(r"[<>|=](b1|[iu][1248]|f[248]|c8|V2)")
_FLOATING = {"f2": "float16", "V2": "bfloat16", "f4": "float32", "f8": "float64"}


def read(path: Path) -> dict[str, mx.array]:
    """Name -> lazy array, without CONFIG_KEY. Raises CorruptWeights or UnsupportedFormat."""
    _check(path)
    try:
        tensors = cast(dict[str, mx.array], mx.load(str(path)))
    except (RuntimeError, ValueError) as cause:
        raise CorruptWeights(f"MLX cannot read {path} ({one_line(cause)})") from None
    tensors.pop(CONFIG_KEY, None)
    return tensors


def read_config(path: Path) -> dict[str, Any] | None:
    """The configuration inside an archive; None where it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{CONFIG_KEY}.npy" not in archive.namelist():
                return None
            with archive.open(f"{CONFIG_KEY}.npy") as file:
                descr, shape = _header(file)
                text = file.read()
    except (*_BAD_ZIP, ValueError) as cause:
        raise _corrupt(path, cause) from None
    try:
        if descr != "|u1" or len(shape) != 1:
            raise ValueError(f"it is an array of {descr!r} with shape {shape}")
        config = json.loads(text)
        if not isinstance(config, dict):
            raise TypeError("it is not an object")
    except (TypeError, ValueError, RecursionError) as cause:
        raise InvalidConfig(
            f"entry {CONFIG_KEY!r} of {path} is not a configuration ({cause}): it must be a "
            "one-dimensional uint8 array that holds config.json as UTF-8"
        ) from None
    return config


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape, of which headers alone are read. Raises CorruptWeights."""
    return {name: shape for name, (_, shape) in _headers(path).items()}


def floating(path: Path) -> set[str]:
    """The floating-point dtypes in an archive, of which headers alone are read."""
    dtypes = {str(descr)[1:] for descr, _ in _headers(path).values()}
    return {_FLOATING[dtype] for dtype in dtypes & _FLOATING.keys()}


def write(path: Path, tensors: Mapping[str, mx.array], config: Mapping[str, Any] | None) -> None:
    """Write all tensors, and the configuration where given, to one archive."""
    if CONFIG_KEY in tensors:
        raise UnsupportedFormat(f"a tensor cannot be named {CONFIG_KEY!r} in {path}: rename it")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        if config is not None:
            text = json.dumps(config, indent=2, ensure_ascii=False).encode()
            _write_entry(archive, CONFIG_KEY, np.frombuffer(text, np.uint8), "|u1")
        for name, array in tensors.items():
            if array.dtype == mx.bfloat16:
                _write_entry(archive, name, np.array(array.view(mx.uint16)), "<V2")
            else:
                values = np.array(array)
                _write_entry(archive, name, values, values.dtype.str)


def _headers(path: Path) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """What is said of each tensor, CONFIG_KEY apart."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    found[name.removesuffix(".npy")] = _header(file)
    except (*_BAD_ZIP, ValueError) as cause:
        raise _corrupt(path, cause) from None
    found.pop(CONFIG_KEY, None)
    return found


def _write_entry(archive: zipfile.ZipFile, name: str, values: np.ndarray, descr: str) -> None:
    fields = {"descr": descr, "fortran_order": False, "shape": values.shape}
    text = f"{fields!r}\n".encode()
    text = text[:-1].ljust(-(-(len(text) + 10) // 64) * 64 - 11) + b"\n"  # data starts at 64*n
    header = _MAGIC + b"\x01\x00" + len(text).to_bytes(2, "little") + text
    entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980
    with archive.open(entry, "w", force_zip64=values.nbytes >= 1 << 30) as file:
        file.write(header)
        file.write(values.tobytes())


def _check(path: Path) -> None:
    """Raise unless every entry is a whole array of a dtype MLX reads."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist()]
            if len(set(names)) != len(names):
                raise ValueError("an entry stands twice")
            for entry in archive.infolist():
                _check_entry(path, archive, entry)
            broken = archive.testzip()
            if broken is not None:
                raise ValueError(f"entry {broken!r} does not match its checksum")
    except (*_BAD_ZIP, ValueError) as cause:
        raise _corrupt(path, cause) from None


def _check_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if not name.endswith(".npy"):
        raise UnsupportedFormat(
            f"entry {name!r} of {path} is not an array (.npy): pack tensors alone, and the "
            f"configuration as {CONFIG_KEY!r}"
        )
    with archive.open(entry) as file:
        try:
            descr, shape = _header(file)
        except ValueError as cause:
            raise ValueError(f"entry {name!r}: {cause}") from None
        start = file.tell()
    key = name.removesuffix(".npy")
    if isinstance(descr, str) and descr.endswith("O"):
        raise UnsupportedFormat(
            f"entry {key!r} of {path} holds pickled Python objects, which can run code when read, "
            "and is refused: save plain numeric arrays"
        )
    if not isinstance(descr, str) or _DESCR.fullmatch(descr) is None:
        raise UnsupportedFormat(
            f"entry {key!r} of {path} has dtype {descr!r}: save plain numeric arrays"
        )
    expected = math.prod(shape) * int(descr[2:])
    if entry.file_size - start != expected:
        raise ValueError(
            f"entry {key!r} of shape {shape} needs {expected} bytes, has {entry.file_size - start}"
        )


def _header(file: IO[bytes]) -> tuple[Any, tuple[int, ...]]:
    """dtype description and shape of an .npy stream, which is left at its data."""
    start = file.read(8)
    if len(start) < 8 or start[:6] != _MAGIC or start[6] not in (1, 2, 3):
        raise ValueError("no .npy header")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    if length > 1 << 16:
        raise ValueError(f"an .npy header of {length} bytes")
    try:
        fields = ast.literal_eval(file.read(length).decode().strip())
        descr, shape = fields["descr"], fields["shape"]
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError):
        raise ValueError("an unreadable .npy header") from None
    return descr, tuple(shape)


def _corrupt(path: Path, cause: BaseException) -> CorruptWeights:
    return CorruptWeights(
        f"{path} is truncated or corrupt: {one_line(cause)}; fetch or convert it again"
    )
