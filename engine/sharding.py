"""What one of several ranks has of a decoder, as data: tensor parallelism.

A whole `DecoderSpec` becomes that of one rank, with fewer heads and narrower MLPs, and tables that
say which part of each parameter it holds and which part of each value it computes. What is in no
table is whole on every rank: norms, routers, latent vectors, learned positions.

This module knows neither processes nor files. Shares may be uneven by one unit, so that counts need
not divide; what cannot be cut at all raises RanksUnavailable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import mlx.core as mx

from .errors import RanksUnavailable
from .spec import AttentionSpec, BlockSpec, DecoderSpec, LatentAttentionSpec, MLPSpec, MoESpec

if TYPE_CHECKING:
    from .weights.quantised import Packing


@dataclass(frozen=True)
class Slice:
    """From `start` to `stop` of the `size` along `axis`, which is counted from the end.

    `counts` is False where an earlier rank has the same: key/value heads that several ranks share.
    """

    axis: int
    start: int
    stop: int
    size: int
    counts: bool = True

    def of(self, whole: mx.array) -> mx.array:
        """The rank's part."""
        axis = whole.ndim + self.axis
        return whole[(slice(None),) * axis + (slice(self.start, self.stop),)]

    def addend(self, part: mx.array) -> mx.array:
        """What the rank adds so that the sum over all ranks is whole."""
        ends = [(0, 0)] * part.ndim
        ends[self.axis] = (self.start, self.size - self.stop)
        return mx.pad(part if self.counts else mx.zeros_like(part), ends)


@dataclass(frozen=True)
class Addend:
    """All of it on the `first` rank and zeros on the others: biases of what is summed."""

    first: bool

    def of(self, whole: mx.array) -> mx.array:
        return whole if self.first else mx.zeros_like(whole)

    def addend(self, part: mx.array) -> mx.array:
        return part


Part = Slice | Addend


@dataclass(frozen=True)
class Share:
    """What a rank has: the spec of its decoder, and its part of parameters and of tapped values.

    `whole` is the spec of the model. Values are known by their taps: `blocks.0.attn.q`.
    """

    rank: int
    ranks: int
    whole: DecoderSpec
    spec: DecoderSpec
    parameters: Mapping[str, Part]
    values: Mapping[str, Part]


def share_of(
    spec: DecoderSpec, rank: int, ranks: int, packed: Mapping[str, Packing] | None = None
) -> Share:
    """The share of one rank; `packed` says which modules' matrices are packed, and how.

    Packed rows are cut between groups. Raises RanksUnavailable.
    """
    cutter = _Cutter(rank, ranks, packed or {})
    for module in ("embed", "head"):  # what comes of them is whole
        cutter.rows(module, spec.vocab, *bounds(spec.vocab, rank, ranks, "the vocabulary"))
        del cutter.values[module]
    blocks = tuple(cutter.block(f"blocks.{i}", block) for i, block in enumerate(spec.blocks))
    parameters = _unpacked_names(cutter.parameters, packed or {})
    own = replace(spec, blocks=blocks)
    return Share(rank, ranks, spec, own, parameters, cutter.values)


def bounds(size: int, rank: int, ranks: int, what: str, grain: int = 1) -> tuple[int, int]:
    """From where to where a rank's part reaches; parts end at multiples of `grain`."""
    units = size // grain
    if units < ranks:
        of = f"{units} groups of {grain}" if grain > 1 else str(units)
        raise RanksUnavailable(f"{what} has {of}, too few for {ranks} ranks: use fewer")
    first, last = units * rank // ranks, units * (rank + 1) // ranks
    return first * grain, size if rank + 1 == ranks else last * grain


def heads_of(
    heads: int, kv_heads: int, rank: int, ranks: int, grain: int = 1
) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """Bounds of a rank's query heads and key/value heads, and whether the latter are its own.

    Query heads stay with their key/value heads. Where there are fewer of these than ranks, several
    ranks hold the same one and share its query heads. Query heads end at multiples of `grain`.
    """
    each = heads // kv_heads
    if ranks <= kv_heads:
        steps = grain // math.gcd(each, grain)
        first, last = bounds(kv_heads, rank, ranks, "kv_heads", steps)
        return (first * each, last * each), (first, last), True
    kv = rank * kv_heads // ranks
    mates = [other for other in range(ranks) if other * kv_heads // ranks == kv]
    at = mates.index(rank)
    if each < len(mates):
        raise RanksUnavailable(
            f"{heads} heads over {kv_heads} key/value heads are too few for {ranks} ranks: use "
            f"{heads} or fewer"
        )
    first, last = bounds(each, at, len(mates), f"each of {kv_heads} kv_heads' query heads", grain)
    return (kv * each + first, kv * each + last), (kv, kv + 1), at == 0


class _Cutter:
    """Collects the parts of one rank."""

    def __init__(self, rank: int, ranks: int, packed: Mapping[str, Packing]) -> None:
        self._rank, self._ranks, self._packed = rank, ranks, packed
        self.parameters: dict[str, Part] = {}
        self.values: dict[str, Part] = {}

    def block(self, path: str, spec: BlockSpec) -> BlockSpec:
        whole, at = spec.attention, f"{path}.attn"
        latent = isinstance(whole, LatentAttentionSpec)
        attention = self._latent(at, whole) if latent else self._attention(at, whole)
        whole, at = spec.mlp, f"{path}.mlp"
        mlp = self._mlp(at, whole) if isinstance(whole, MLPSpec) else self._moe(at, whole)
        return replace(spec, attention=attention, mlp=mlp)

    def rows(self, module: str, size: int, start: int, stop: int, counts: bool = True) -> None:
        """A linear module of which the rank computes some outputs."""
        self.parameters[f"{module}.weight"] = Slice(-2, start, stop, size, counts)
        self.parameters[f"{module}.bias"] = Slice(-1, start, stop, size, counts)
        self.values[module] = Slice(-1, start, stop, size, counts)

    def columns(self, module: str, size: int, start: int, stop: int) -> None:
        """A linear module of which the rank takes some inputs; the outputs are to be summed."""
        self.parameters[f"{module}.weight"] = Slice(-1, start, stop, size)
        self.parameters[f"{module}.bias"] = Addend(self._rank == 0)

    def _attention(self, path: str, spec: AttentionSpec) -> AttentionSpec:
        H, K, D = spec.heads, spec.kv_heads, spec.head_dim
        q, kv, counts = self._heads(f"{path}.o", H, K, D)
        for name, size, (start, stop), own in (
            ("q", H, q, True), ("k", K, kv, counts), ("v", K, kv, counts),
        ):  # fmt: skip
            self.rows(f"{path}.{name}", size * D, start * D, stop * D, own)
        self.columns(f"{path}.o", H * D, q[0] * D, q[1] * D)
        self.values[f"{path}.context"] = Slice(-1, q[0] * D, q[1] * D, H * D)
        self.parameters[f"{path}.sinks"] = Slice(-1, *q, H)
        for name, size, part, own in (("q", H, q, True), ("k", K, kv, counts)):
            self._head_values(f"{path}.{name}_norm", size, part, own)
            if spec.qk_norm_over == "all heads":
                if spec.qk_norm and spec.qk_norm.kind != "rms":
                    raise RanksUnavailable(
                        f"a norm of kind {spec.qk_norm.kind!r} over all heads is not cut into ranks"
                    )
                over = Slice(-1, part[0] * D, part[1] * D, size * D, own)
                self.values[f"{path}.{name}_norm"] = over
                self.parameters[f"{path}.{name}_norm.weight"] = over
            elif spec.qk_norm_over == "each head":
                for parameter in ("weight", "bias"):
                    self.parameters[f"{path}.{name}_norm.{parameter}"] = Slice(-2, *part, size, own)
        self._head_values(f"{path}.query", H, q, True)
        self._head_values(f"{path}.key", K, kv, counts)
        return replace(spec, heads=q[1] - q[0], kv_heads=kv[1] - kv[0])

    def _latent(self, path: str, spec: LatentAttentionSpec) -> LatentAttentionSpec:
        H, up = spec.heads, spec.nope_dim + spec.value_dim
        (first, last), _, _ = self._heads(f"{path}.o", H, H, spec.value_dim)
        q = "q" if spec.query_rank is None else "q_up"
        for name, width in ((q, spec.head_dim), ("kv_up", up)):
            self.rows(f"{path}.{name}", H * width, first * width, last * width)
        V = spec.value_dim
        self.columns(f"{path}.o", H * V, first * V, last * V)
        self.values[f"{path}.context"] = Slice(-1, first * V, last * V, H * V)
        for name in ("query", "key"):
            self._head_values(f"{path}.{name}", H, (first, last), True)
        return replace(spec, heads=last - first)

    def _heads(self, o: str, heads: int, kv_heads: int, width: int):
        """`heads_of`, where the columns of o, so many a head, are cut between packed groups."""
        grain = 1
        if o in self._packed:
            group = self._packed[o].group_size
            grain = group // math.gcd(group, width)
        return heads_of(heads, kv_heads, self._rank, self._ranks, grain)

    def _head_values(self, tap: str, size: int, part: tuple[int, int], counts: bool) -> None:
        """A value (B, H, T, D)."""
        self.values[tap] = Slice(-3, *part, size, counts)

    def _mlp(self, path: str, spec: MLPSpec) -> MLPSpec:
        F, (start, stop) = spec.width, self._width(f"{path}.down", spec.width)
        for name in ("gate", "up"):
            self.rows(f"{path}.{name}", F, start, stop)
        self.columns(f"{path}.down", F, start, stop)
        return replace(spec, width=stop - start)

    def _moe(self, path: str, spec: MoESpec) -> MoESpec:
        """Every expert is cut: all ranks have the same work whichever experts are chosen."""
        F, (start, stop) = spec.width, self._width(f"{path}.experts.down", spec.width)
        for name in ("gate", "up"):
            self.parameters[f"{path}.experts.{name}"] = Slice(-2, start, stop, F)
            self.parameters[f"{path}.experts.{name}_bias"] = Slice(-1, start, stop, F)
        self.parameters[f"{path}.experts.down"] = Slice(-1, start, stop, F)
        self.parameters[f"{path}.experts.down_bias"] = Addend(self._rank == 0)
        shared = spec.shared and self._mlp(f"{path}.shared", spec.shared)
        for name in ("shared", "shared.down"):  # summed with the experts, not before
            self.values[f"{path}.{name}"] = Addend(self._rank == 0)
        return replace(spec, width=stop - start, shared=shared)

    def _width(self, down: str, width: int) -> tuple[int, int]:
        grain = self._packed[down].group_size if down in self._packed else 1
        return bounds(width, self._rank, self._ranks, f"the width of {down}", grain)


def _unpacked_names(parts: Mapping[str, Part], packed: Mapping[str, Packing]) -> dict[str, Part]:
    """The same with the tensors of packed matrices in the place of theirs."""
    found = dict(parts)
    for module, how in packed.items():
        matrix = found.pop(f"{module}.weight", None) or found.pop(module, None)
        if not isinstance(matrix, Slice):
            continue
        for part in how.parts:
            cut = matrix
            if matrix.axis == -1:  # numbers become words, or groups
                a, b = (how.bits, 32) if part == "weight" else (1, how.group_size)
                start, stop, size = (n * a // b for n in (cut.start, cut.stop, cut.size))
                cut = replace(cut, start=start, stop=stop, size=size)
            found[f"{module}.{part}"] = cut
    return found
