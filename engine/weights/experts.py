"""The experts of a checkpoint: one tensor each, as transformers has them, or stacked, as mlx-lm.

Both spellings are rows of the same target in a decoder's table of names; this module turns one into
the other. No family is known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import mlx.core as mx

from ..names import Name
from .quantised import PARTS


def one_by_one(tensors: Mapping[str, mx.array], rows: Iterable[Name]) -> dict[str, mx.array]:
    """Stacked matrices of experts taken apart, everything else as it is."""
    found = dict(tensors)
    for each, stacked in _spellings(rows):
        if f"{stacked}.weight" in found:
            matrices = found.pop(f"{stacked}.weight")
            for expert in range(matrices.shape[0]):
                found[f"{each.replace('{e}', str(expert))}.weight"] = matrices[expert]
    return found


def together(tensors: Mapping[str, mx.array], rows: Iterable[Name]) -> dict[str, mx.array]:
    """Matrices of single experts stacked, packed or not, everything else as it is."""
    found = dict(tensors)
    for each, stacked in _spellings(rows):
        for part in PARTS:
            names = list(_present(f"{each}.{part}", found))
            if names:
                found[f"{stacked}.{part}"] = mx.stack([found.pop(name) for name in names])
    return found


def _spellings(rows: Iterable[Name]) -> Iterator[tuple[str, str]]:
    """Module paths of the same experts: with `{e}` for the expert, and stacked."""
    matrices = [r for r in rows if r.parameter and r.source.endswith(".weight")]
    stacked = {row.targets: row.source for row in matrices if "{e}" not in row.source}
    for row in matrices:
        if "{e}" in row.source and row.targets in stacked:
            yield row.source.removesuffix(".weight"), stacked[row.targets].removesuffix(".weight")


def _present(pattern: str, tensors: Mapping[str, mx.array]) -> Iterator[str]:
    """The names of a pattern with `{e}` = 0, 1, ... as long as there are such tensors."""
    expert = 0
    while (name := pattern.replace("{e}", str(expert))) in tensors:
        yield name
        expert += 1
