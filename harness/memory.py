"""What a comparison takes in memory and on disk, told before it begins. All sizes are bytes."""

from __future__ import annotations

import contextlib
import ctypes
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.errors import EngineError
from engine.files import PICKLES, ModelFiles
from engine.weights import read_weights
from engine.weights.plain import plain_weights

from .backends._streamed import AT_ONCE, block_of
from .types import Probe

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
ORACLE = 8
BASE = 800_000_000  # Python, PyTorch, transformers and MLX themselves
WORTH_TELLING = 1_000_000_000
A_FEATURE = 32  # bytes on disk of one feature of one token between two parts, all sides
CGROUP = Path("/sys/fs/cgroup")


Notice = Callable[[str], None]


class TooLittle(EngineError):
    """The machine has less memory or disk than the work needs."""


@dataclass(frozen=True)
class Size:
    """Parameters of a model: all of them, those of its largest block, and of its largest table.

    `longest` is the largest dimension of a matrix in a block: how long products get.
    """

    stored: int  # bytes on disk
    parameters: int
    block: int
    table: tuple[int, int]
    longest: int = 0

    def whole(self, dtype: str, live: bool, loaded: bool = True) -> int:
        """Memory with all sides in it: PyTorch and the oracle where `live`, and the candidate where
        it is `loaded` here, not recorded or served elsewhere."""
        return BASE + self.parameters * (loaded * ITEM[dtype] + live * (ITEM[dtype] + ORACLE))

    def streamed(self, dtype: str, live: bool, probes: Sequence[Probe]) -> int:
        """Memory with one part of one side at a time."""
        rows, width = self.table
        # What was read, a cast of it, the reference; and the oracle that is lifted from that.
        each = 2 + 2 * ITEM[dtype] + live * ORACLE
        block = self.block * each
        head = min(rows, AT_ONCE) * width * each
        tokens = sum(len(probe.tokens) for probe in probes)
        return BASE + max(block, head) + tokens * (rows * 24 + width * 48)


def size_of(files: ModelFiles) -> Size:
    """Read off the weights' headers; of pickles, which are not read, off their length."""
    if files.weights[0].suffix in PICKLES:
        stored = sum(path.stat().st_size for path in files.weights)
        return Size(stored, stored // 2, 0, (0, 0))
    stored = sum(array.nbytes for array in read_weights(files).values())
    tensors = plain_weights(files)
    blocks: dict[int, int] = {}
    table, longest = (0, 0), 0
    for name, array in tensors.items():
        block = block_of(name)
        if block is not None:
            blocks[block] = blocks.get(block, 0) + array.size
            longest = max(longest, *array.shape[-2:]) if array.ndim > 1 else longest
        elif array.ndim == 2:
            table = max(table, (array.shape[0], array.shape[1]), key=math.prod)
    parameters = sum(array.size for array in tensors.values())
    return Size(stored, parameters, max(blocks.values(), default=0), table, longest)


def available() -> int:
    """Memory that can be had now: of the machine, or of the container where that is less."""
    found = psutil.virtual_memory().available
    try:
        most = int((CGROUP / "memory.max").read_text())
        return min(found, most - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return found


def part_by_part(
    files: ModelFiles,
    dtype: str,
    live: bool,
    stream: bool | None,
    notice: Notice | None,
    *,
    loaded: bool = True,
    streamable: bool = True,
) -> bool:
    """Whether to stream: as told, or where the whole of both sides would not fit.

    Tells what the whole takes where that is much. Raises TooLittle where it does not fit and
    `stream` is False, or the candidate not `streamable`. `loaded` as in `Size.whole`.
    """
    if stream:
        return True
    size, free = size_of(files), available()
    whole = size.whole(dtype, live, loaded)
    if whole > free and stream is None and streamable:
        return True
    text = f"{shown(whole)} of memory needed, {shown(free)} available"
    if whole > free:
        way = "--stream runs it part by part" if streamable else "--reference golden takes less"
        raise TooLittle(f"{files.name} as a whole: about {text}; {way}")
    if notice and whole > WORTH_TELLING:
        notice(f"{shown(size.stored)} of weights, {dtype}: about {text}")
    return False


def check_streamed(
    files: ModelFiles, dtype: str, live: bool, probes: Sequence[Probe], notice: Notice | None
) -> int:
    """Tell what streaming takes, and raise TooLittle where it is not there; return the width."""
    size, free = size_of(files), available()
    needed = size.streamed(dtype, live, probes)
    text = f"about {shown(needed)} of memory needed, {shown(free)} available"
    if notice:
        notice(f"streaming {shown(size.stored)} of weights, {dtype}: {text}")
    if needed > free:
        raise TooLittle(f"{files.name} is too large even part by part: {text}")
    return size.table[1]


def give_back_freed() -> None:
    """Have glibc return what was freed to the system; elsewhere nothing is to be done.

    Left alone it keeps most of what is smaller than 32 MB, and blocks read one after the other
    leave holes: 80 MB a block in a llama 1024 wide.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def check_disk(path: Path, needed: int, notice: Notice | None = None) -> None:
    """Raise TooLittle where a file of `needed` bytes has no room."""
    free = shutil.disk_usage(path.parent).free
    if notice:
        notice(f"{path}: about {shown(needed)} of disk needed, {shown(free)} free")
    if needed > free:
        raise TooLittle(
            f"{path} takes {shown(needed)} of disk, and {shown(free)} are free: make room, or name "
            "another place"
        )


def shown(size: float) -> str:
    """A size as people read it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
