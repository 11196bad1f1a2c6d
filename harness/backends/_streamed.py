"""Running one part of a model at a time: the embedding, a block, or the last norm and head.

A part is named by the site it ends in. Only its weights are in memory while `resident` is open;
what enters it is given. So a model of any depth takes the memory of its largest part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  so that numpy knows bfloat16
import numpy as np

from engine.errors import UnsupportedFormat
from engine.files import ModelFiles
from engine.weights.plain import as_original

from ..types import LOGITS, Site, TokenFacts
from . import Observe

EMBEDDING = Site("embedding", None)
AT_ONCE = 8192  # rows of the output matrix


class Streamed(Protocol):
    """A side whose parts can be run one by one."""

    name: str
    dtype: str
    device: str
    limits: Mapping[str, str]
    blocks: int

    def resident(self, part: Site) -> contextlib.AbstractContextManager[None]:
        """Holds the weights of a part in memory; `run` may be called of that part alone."""
        ...

    def run(
        self,
        tokens: Sequence[int],
        part: Site,
        mode: str,
        fed: np.ndarray | None,
        observe: Observe,
    ) -> None:
        """Compute one part of a sequence from what enters it, (T, C); None for the embedding.

        `observe` is told the sites of that part. `mode` says which of the two `fed` belongs to, for
        sides that hold recordings.
        """
        ...

    def tokens(self, texts: Sequence[str]) -> TokenFacts | None: ...


def parts(blocks: int) -> list[Site]:
    """All parts in execution order."""
    return [EMBEDDING, *(Site("block", k) for k in range(blocks)), LOGITS]


def within(site: Site, part: Site) -> bool:
    """Whether a site is computed by a part."""
    if part == LOGITS:
        return site.kind in ("norm", "logits")
    return site.block == part.block and (site == part or part.kind == "block")


def block_of(name: str) -> int | None:
    """The block that a parameter is in: the first number in its path."""
    return next((int(step) for step in name.split(".") if step.isdigit()), None)


def before(part: Site, blocks: int) -> Site:
    """The site whose value enters a part."""
    last = blocks - 1 if part == LOGITS else (part.block or 0) - 1
    return EMBEDDING if last < 0 else Site("block", last)


class Shards:
    """The tensors of a checkpoint in safetensors, read from disk when they are asked for.

    A file is closed after every use, because its mapped pages count as memory.
    """

    def __init__(self, files: ModelFiles, framework: str = "numpy") -> None:
        from safetensors import safe_open

        if files.weights[0].suffix != ".safetensors":
            raise UnsupportedFormat(
                f"{files.weights[0]} cannot be streamed: convert it with engine convert to "
                ".safetensors"
            )
        if not as_original(files):
            raise UnsupportedFormat(
                f"{files.weights[0]} cannot be streamed: its tensors are not the original's, but "
                "packed, or under other names"
            )
        self._open: Callable[..., Any] = lambda path: safe_open(path, framework=framework)
        self._home: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in files.weights:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118
                    self._home[name] = path
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Whole tensors by name."""
        found = {}
        for path in dict.fromkeys(self._home[name] for name in names):
            with self._open(path) as file:
                found |= {n: file.get_tensor(n) for n in names if self._home[n] == path}
        return found

    def rows(self, name: str, start: int, stop: int) -> Any:
        """Some rows of a table."""
        with self._open(self._home[name]) as file:
            return file.get_slice(name)[start:stop]

    def table(self, path: str, shape: tuple[int, ...], besides: str | None = None) -> str | None:
        """The name of the tensor that a module's parameter comes from; None where that is open.

        A checkpoint may have another word for it: where no name fits, it is the one tensor of that
        shape outside blocks `besides` a known one.
        """
        last = path.removeprefix("model.")
        fits = [n for n, there in self.shapes.items() if there == shape and block_of(n) is None]
        named = [name for name in fits if name.endswith(last) or last.endswith(name)]
        others = [name for name in fits if besides is not None and name != besides]
        found = named or others
        return found[0] if len(found) == 1 else None


def row_slices(rows: int) -> list[tuple[int, int]]:
    """(start, stop) of the pieces that the output matrix is read in."""
    return [(start, min(start + AT_ONCE, rows)) for start in range(0, rows, AT_ONCE)]
