"""What a comparison takes in memory and on disk, told before it begins. All sizes are bytes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from engine.errors import EngineError
from engine.files import PICKLES, ModelFiles
from engine.weights import read_weights

from .backends._streamed import AT_ONCE, block_of
from .types import Probe

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
ORACLE = 8
BASE = 600_000_000  # Python, PyTorch, transformers and MLX themselves
WORTH_TELLING = 1_000_000_000
CGROUP = Path("/sys/fs/cgroup")


class TooLittle(EngineError):
    """The machine has less memory or disk than the work needs."""


@dataclass(frozen=True)
class Size:
    """Parameters of a model: all of them, those of its largest block, and of its largest table."""

    stored: int  # bytes on disk
    parameters: int
    block: int
    table: tuple[int, int]

    def whole(self, dtype: str, live: bool) -> int:
        """Memory with all sides loaded; `live` where PyTorch and the oracle are."""
        return BASE + self.parameters * (ITEM[dtype] + live * (ITEM[dtype] + ORACLE))

    def streamed(self, dtype: str, live: bool, probes: Sequence[Probe]) -> int:
        """Memory with one part of one side at a time."""
        rows, width = self.table
        held = ITEM[dtype] + (live * ORACLE or ITEM[dtype])
        block = self.block * (held + ITEM[dtype])  # read, then cast or lifted
        head = min(rows, AT_ONCE) * width * (held + ITEM[dtype])
        tokens = sum(len(probe.tokens) for probe in probes)
        return BASE + max(block, head) + tokens * (rows * 24 + width * 48)


def size_of(files: ModelFiles) -> Size:
    """Read off the weights' headers; of pickles, which are not read, off their length."""
    if files.weights[0].suffix in PICKLES:
        stored = sum(path.stat().st_size for path in files.weights)
        return Size(stored, stored // 2, 0, (0, 0))
    tensors = read_weights(files)
    blocks: dict[int, int] = {}
    table = (0, 0)
    for name, array in tensors.items():
        block = block_of(name)
        if block is not None:
            blocks[block] = blocks.get(block, 0) + array.size
        elif array.ndim == 2:
            table = max(table, (array.shape[0], array.shape[1]), key=math.prod)
    stored = sum(array.nbytes for array in tensors.values())
    return Size(
        stored, sum(a.size for a in tensors.values()), max(blocks.values(), default=0), table
    )


def available() -> int:
    """Memory that can be had now: of the machine, or of the container where that is less."""
    found = psutil.virtual_memory().available
    try:
        most = int((CGROUP / "memory.max").read_text())
        return min(found, most - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return found


def check_disk(path: Path, needed: int) -> None:
    """Raise TooLittle where a file of `needed` bytes has no room."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise TooLittle(
            f"{path} takes {shown(needed)} of disk, and {shown(free)} are free: make room, or name "
            "another place"
        )


def shown(size: float) -> str:
    """A size as people read it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
