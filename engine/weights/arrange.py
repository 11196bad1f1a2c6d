"""From the names of a checkpoint to the names of the engine.

The rows of `spec.names` say which transformers module feeds which engine module; the engine's own
parameter shapes say what there must be. Where rows are spellings of one thing, the checkpoint says
which holds. Every tensor is used once, or known to be superfluous, or an error. This module knows
no family and reads no values, one tied head apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..errors import CorruptWeights
from ..names import Name
from ..sharding import Slice
from ..spec import DecoderSpec
from .mxfp4 import unpacked

if TYPE_CHECKING:
    from ..sharding import Part
    from .parts import Parts

# Buffers that real checkpoints carry and no model has as parameters: rotary tables, causal masks.
_BUFFER = re.compile(r"rotary_emb\.inv_freq$|\.(attn|attention)\.(bias|masked_bias)$")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Source:
    """Checkpoint tensors of one shape and the engine parameters that they become.

    Tensors are stacked where `stacked`; what is then split into targets is the output rows, within
    each of `groups`.
    """

    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    transpose: bool
    stacked: bool
    groups: int


def arrange(
    tensors: Mapping[str, mx.array],
    spec: DecoderSpec,
    shapes: Shapes,
    where: str,
    parts: Parts | None = None,
) -> dict[str, mx.array]:
    """Engine parameters from checkpoint tensors; they stay unread, but for the `parts` of a rank.

    `shapes` are the engine's own parameters, `where` is the file or folder named in errors. Raises
    CorruptWeights when a tensor is missing, left over, or of the wrong shape.
    """
    spellings = list(_spellings(spec, shapes))
    tensors = unpacked(tensors, where)
    tensors = _whole_names(tensors, spellings)
    head = _head(spec, tensors)
    tensors = _without_tied_head(tensors, spec, head, where) if spec.tied_head else tensors
    sources = _sources(spellings, tensors)
    used = {name: source.shape for source in sources for name in source.tensors}
    missing = [name for name in used if name not in tensors]
    extra = [name for name in tensors if name not in used and not _BUFFER.search(name)]
    extra = [name for name in extra if not name.startswith(_drafts(spec))]
    if missing:
        raise _missing(missing, extra, head, where)
    if extra:
        raise CorruptWeights(
            f"tensor {extra[0]!r}{_others(extra)} in {where} belongs to no module of this "
            f"{spec.model_type}: correct config.json, or take the tensor out"
        )
    wrong = [name for name, shape in used.items() if tuple(tensors[name].shape) != shape]
    if wrong:
        raise CorruptWeights(
            f"tensor {wrong[0]!r}{_others(wrong)} in {where} has shape "
            f"{tuple(tensors[wrong[0]].shape)}, expected is {used[wrong[0]]}: config.json and "
            "weights are not of the same model"
        )
    parameters: dict[str, mx.array] = {}
    for source in sources:
        arrays = [tensors.pop(name) for name in source.tensors]
        if parts is None:
            parameters.update(_split(arrays, source, shapes))
        else:
            made = dict(_part(arrays, source, shapes, parts))
            mx.eval(made)  # one by one: what it was made of is not kept
            parameters.update(made)
    return parameters


def _sources(spellings: list[_Source], tensors: Mapping[str, mx.array]) -> list[_Source]:
    """One spelling of each engine parameter: the first that the checkpoint has a tensor of."""
    found = [s for s in spellings if any(name in tensors for name in s.tensors)]
    taken: dict[str, _Source] = {}
    for source in (*found, *spellings):
        if not any(path in taken for path in source.targets):
            taken.update(dict.fromkeys(source.targets, source))
    return [source for source in spellings if taken.get(source.targets[0]) is source]


def _spellings(spec: DecoderSpec, shapes: Shapes) -> Iterator[_Source]:
    """The checkpoint tensors that a decoder of this spec may be made of."""
    kinds: dict[str, list[str]] = {}  # engine module -> its parameters' last names
    for path in shapes:
        module, _, kind = path.rpartition(".")
        kinds.setdefault(module, []).append(kind)
    unnamed = set(shapes)
    for row in rows_of(spec):
        for name, paths in _parameters(row, kinds, shapes):
            yield _source(name, paths, row, shapes)
            unnamed -= set(paths)
    if unnamed:  # a fault of the architecture file, not of the user's
        raise KeyError(f"no name in {spec.model_type}'s table for {sorted(unnamed)}")


def _parameters(
    row: Name, kinds: Mapping[str, list[str]], shapes: Shapes
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The tensor names of a row, each with the engine parameters that it feeds."""
    source, whole = row.source, tuple(path for path in row.targets if path in shapes)
    if row.parameter:
        if whole:
            yield source, whole
        source = source.removesuffix(".weight")  # of a packed matrix, whose parts are parameters
    modules = [module for module in row.targets if module in kinds]
    for kind in dict.fromkeys(kind for module in modules for kind in kinds[module]):
        paths = tuple(f"{m}.{kind}" for m in modules if f"{m}.{kind}" in shapes)
        yield f"{source}.{kind}", paths


def _source(name: str, paths: tuple[str, ...], row: Name, shapes: Shapes) -> _Source:
    shape, axis = list(shapes[paths[0]]), _rows_axis(paths[0], shapes[paths[0]])
    shape[axis] = sum(shapes[path][axis] for path in paths)
    experts = shape.pop(0) if "{e}" in name else 1
    names = tuple(name.replace("{e}", str(expert)) for expert in range(experts))
    turned = row.transpose and not name.endswith("bias")
    if turned:
        shape[-2:] = shape[:-3:-1]
    return _Source(names, tuple(shape), paths, turned, "{e}" in name, row.groups)


def _rows_axis(path: str, shape: tuple[int, ...]) -> int:
    """The axis of the output rows: (out, in), (E, out, in), or a bias' (out,) or (E, out)."""
    return len(shape) - (1 if path.endswith("bias") or len(shape) == 1 else 2)


def rows_of(spec: DecoderSpec) -> Iterator[Name]:
    """The rows of a decoder's table, those of blocks once for every block."""
    for row in spec.names:
        if "{i}" in row.source:
            yield from (row.at(block) for block in range(len(spec.blocks)))
        else:
            yield row


def _drafts(spec: DecoderSpec) -> tuple[str, ...]:
    """What the names of blocks for drafting begin with: they stand behind the last block."""
    block = next((row.source for row in spec.names if row.targets == ("blocks.{i}",)), "")
    last = len(spec.blocks) + spec.draft_blocks
    return tuple(block.replace("{i}", f"{i}.") for i in range(len(spec.blocks), last))


def _whole_names(tensors: Mapping[str, mx.array], sources: list[_Source]) -> dict[str, mx.array]:
    """Give the tensors of a base model, saved without its head, their first component back."""
    every = [name for source in sources for name in source.tensors]
    first = every[0].partition(".")[0] + "."
    heads = {name for name in every if not name.startswith(first)}
    if any(name.startswith(first) for name in tensors):
        return dict(tensors)
    known = heads | {"lm_head.weight"}
    return {name if name in known else first + name: array for name, array in tensors.items()}


def _head(spec: DecoderSpec, tensors: Mapping[str, mx.array]) -> str | None:
    """The checkpoint's name for the head's matrix; the first spelling where it has none."""
    names = [f"{row.source}.weight" for row in spec.names if row.targets == ("head",)]
    return next((name for name in names if name in tensors), names[0] if names else None)


def _without_tied_head(
    tensors: dict[str, mx.array], spec: DecoderSpec, head: str | None, where: str
) -> dict[str, mx.array]:
    """Drop a head that repeats the embedding, or let it stand in for one that is absent.

    transformers does not tie a head that differs from the embedding, whatever the configuration
    says; neither can this be passed over.
    """
    if head not in tensors:
        return tensors
    rest = dict(tensors)
    spare = rest.pop(head)
    embed = next(f"{row.source}.weight" for row in spec.names if row.targets == ("embed",))
    if embed not in rest:
        return {**rest, embed: spare}
    if spare.shape != rest[embed].shape or not mx.array_equal(spare, rest[embed]).item():
        raise CorruptWeights(
            f"tensor {head!r} in {where} differs from {embed!r}, though tie_word_embeddings is "
            "true: set it to false in config.json, or take the tensor out"
        )
    return rest


def _part(
    arrays: list[mx.array], source: _Source, shapes: Shapes, parts: Parts
) -> Iterator[tuple[str, mx.array]]:
    """A rank's parts of the targets, of which nothing else is read."""
    cuts = [parts.of(path) for path in source.targets]
    axes = [_rows_axis(path, shapes[path]) - len(shapes[path]) for path in source.targets]
    slices = [cut for cut in cuts if isinstance(cut, Slice)]
    if not slices:
        whole = dict(_split(arrays, source, shapes))
        for (path, array), cut in zip(whole.items(), cuts, strict=True):
            yield path, array if cut is None else cut.of(array)
        return
    axis, ranges = slices[0].axis, [(slices[0].start, slices[0].stop)]
    if source.stacked and axis == -len(shapes[source.targets[0]]):
        yield from _split(arrays[slice(*ranges[0])], source, shapes)
        return
    if axis == axes[0]:
        ranges, groups = _row_ranges(source, cuts, [shapes[p][axis] for p in source.targets])
        source = replace(source, groups=groups)
    if source.transpose:
        axis = -3 - axis  # the last two change places
    own = dict(shapes)
    for path, cut in zip(source.targets, cuts, strict=True):
        if isinstance(cut, Slice):
            shape = list(shapes[path])
            shape[cut.axis] = cut.stop - cut.start
            own[path] = tuple(shape)
    yield from _split([parts.read(array, axis, ranges) for array in arrays], source, own)


def _row_ranges(
    source: _Source, cuts: Sequence[Part | None], sizes: Sequence[int]
) -> tuple[list[tuple[int, int]], int]:
    """From where to where the rows of some targets' parts stand in their source, and in how many
    groups."""
    ranges: list[tuple[int, int]] = []
    groups, at = set(), 0
    for group in range(source.groups):
        for cut, size in zip(cuts, sizes, strict=True):
            width, first, last = size // source.groups, 0, size
            if isinstance(cut, Slice):
                first, last = cut.start, cut.stop
            first, last = (min(max(n - group * width, 0), width) for n in (first, last))
            if first < last:
                groups.add(group)
                if ranges and ranges[-1][1] == at + first:
                    ranges[-1] = ranges[-1][0], at + last
                else:
                    ranges.append((at + first, at + last))
            at += width
    return ranges, len(groups)


def _split(
    arrays: list[mx.array], source: _Source, shapes: Shapes
) -> Iterator[tuple[str, mx.array]]:
    arrays = [array.swapaxes(-1, -2) for array in arrays] if source.transpose else arrays
    array = mx.stack(arrays) if source.stacked else arrays[0]
    if len(source.targets) == 1:
        yield source.targets[0], _whole_rows(array)
        return
    axis, G = _rows_axis(source.targets[0], array.shape), source.groups
    array = array.reshape(*array.shape[:axis], G, -1, *array.shape[axis + 1 :])
    ends = np.cumsum([shapes[path][axis] // G for path in source.targets])[:-1]
    for path, part in zip(source.targets, mx.split(array, ends.tolist(), axis + 1), strict=True):
        yield path, _whole_rows(part.reshape(shapes[path]))


def _whole_rows(array: mx.array) -> mx.array:
    """Itself, or a copy where its rows are apart in memory, being every second one of another's.

    `gather_mm` on CUDA (mlx 0.32.4) misreads such matrices.
    """
    return mx.contiguous(array, allow_col_major=True)


def _missing(missing: list[str], extra: list[str], head: str | None, where: str) -> Exception:
    if missing == [head]:
        return CorruptWeights(
            f"tensor {head!r} is missing from {where}: without a head of its own the model needs "
            "tie_word_embeddings set to true in config.json, or the tensor added"
        )
    strange = f", which has the unknown {extra[0]!r}{_others(extra)}" if extra else ""
    return CorruptWeights(
        f"tensor {missing[0]!r}{_others(missing)} is missing from {where}{strange}: fetch the "
        "weights again, or correct config.json"
    )


def _others(found: list) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
