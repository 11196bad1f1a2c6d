"""Modules that stand in the decoder of one rank where something passes between ranks.

Each holds the module whose place it takes as `share`. Attention, MLP and experts know nothing of
ranks: they have fewer heads, or are narrower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx import nn

from ..ranks import Ranks
from ..sharding import Share, Slice, bounds
from ..spec import AttentionSpec
from . import Tap, no_tap
from .mlp import MLP
from .norm import Norm

if TYPE_CHECKING:
    from ..decoder import Decoder


def connect(decoder: Decoder, share: Share, ranks: Ranks) -> None:
    """Put these modules into the decoder of a share that has its parameters."""
    root: Any = decoder
    vocab = [bounds(share.whole.vocab, r, ranks.size, "") for r in range(ranks.size)]
    root.embed = VocabularyShare(root.embed, vocab, ranks)
    if not share.spec.tied_head:
        root.head = HeadShare(root.head, vocab, ranks)
    for i, (block, spec) in enumerate(zip(root.blocks, share.whole.blocks, strict=True)):
        attention, whole = block.attn, spec.attention
        attention.o = Total(attention.o, ranks)
        if isinstance(block.mlp, MLP):
            block.mlp["down"] = Total(block.mlp.down, ranks)
        else:
            block.mlp = Total(block.mlp, ranks)
        if isinstance(whole, AttentionSpec) and whole.qk_norm_over == "all heads":
            for name in {"q_norm", "k_norm"} & attention.keys():
                part = share.parameters[f"blocks.{i}.attn.{name}.weight"]
                assert isinstance(part, Slice)
                attention[name] = NormShare(attention[name], part, ranks)


def unshared(path: str) -> str:
    """The path of a parameter or a module in a decoder that is whole."""
    return ".".join(step for step in path.split(".") if step != "share")


def whole_tap(tap: Tap, share: Share, ranks: Ranks, inside: int | None) -> Tap:
    """A tap for a rank's decoder that shows whole values to `tap`, which stands on every rank.

    Of what is inside blocks, those of block `inside` are made whole; `tap` is not told of others.
    """
    if tap is no_tap:
        return tap

    def shown(name: str, x: mx.array) -> mx.array:
        part = share.values.get(name)
        if part is None:
            return tap(name, x)
        if not name.startswith(f"blocks.{inside}."):
            return x
        whole = ranks.total(part.addend(x))
        given = tap(name, whole)
        return x if given is whole else part.of(given)

    return shown


class Total(nn.Module):
    """The sum over ranks of what each makes of its share: a linear module, or all experts."""

    def __init__(self, share: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.share, self._ranks = share, ranks

    def __call__(self, x: mx.array, *more: Any) -> mx.array:
        share: Any = self.share
        return self._ranks.total(share(x, *more))


class NormShare(nn.Module):
    """RMSNorm over the heads of all ranks, of whose features this one has a `part`.

    It rounds where `Norm` does.
    """

    def __init__(self, share: Norm, part: Slice, ranks: Ranks) -> None:
        super().__init__()
        self.share, self._part, self._ranks = share, part, ranks

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, features of the part) -> the same"""
        spec, wide = self.share._spec, x.astype(mx.float32)
        squares = mx.square(wide).sum(axis=-1, keepdims=True)
        squares = self._ranks.total(squares if self._part.counts else mx.zeros_like(squares))
        y, weight = wide * mx.rsqrt(squares / self._part.size + spec.eps), self.share.weight
        if spec.offset or spec.float32_gain:
            return (y * (spec.offset + weight.astype(mx.float32))).astype(x.dtype)
        return y.astype(x.dtype) * weight


class VocabularyShare(nn.Module):
    """An embedding of which each rank has some rows, (start, stop) by rank."""

    def __init__(self, share: nn.Module, rows: list[tuple[int, int]], ranks: Ranks) -> None:
        super().__init__()
        self.share, self._ranks = share, ranks
        self._start, self._stop = rows[ranks.rank]
        self._widths = [stop - start for start, stop in rows]

    def __call__(self, tokens: mx.array) -> mx.array:
        """(B, T) -> (B, T, C): a row comes from the rank that has it, and zeros from the others."""
        share: Any = self.share
        mine = (tokens >= self._start) & (tokens < self._stop)
        x = share(mx.where(mine, tokens.astype(mx.int32) - self._start, 0))
        return self._ranks.total(mx.where(mine[..., None], x, mx.zeros((), x.dtype)))

    def as_linear(self, x: mx.array) -> mx.array:
        """(..., C) -> (..., V)"""
        share: Any = self.share
        return self._ranks.side_by_side(share.as_linear(x), self._widths)


class HeadShare(nn.Module):
    """A head of which each rank has some rows, (start, stop) by rank: logits side by side."""

    def __init__(self, share: nn.Module, rows: list[tuple[int, int]], ranks: Ranks) -> None:
        super().__init__()
        self.share, self._ranks = share, ranks
        self._widths = [stop - start for start, stop in rows]

    def __call__(self, x: mx.array) -> mx.array:
        """(..., C) -> (..., V)"""
        share: Any = self.share
        return self._ranks.side_by_side(share(x), self._widths)
