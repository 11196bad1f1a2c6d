"""The one decoder: a `DecoderSpec` becomes modules, tokens become logits.

No family is named here, and none may be. Where a family needs something new, the spec grows by a
field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from .cache import AnyCache, make_cache
from .layers import Tap, no_tap, scaled, under
from .layers.attention import Attention
from .layers.latent_attention import LatentAttention
from .layers.mlp import MLP
from .layers.moe import MoE
from .layers.norm import Norm
from .spec import BlockSpec, DecoderSpec, LatentAttentionSpec, MLPSpec
from .step import Steps


class Decoder(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = nn.Embedding(spec.vocab, spec.width)
        if spec.learned_positions:
            self.positions = nn.Embedding(spec.learned_positions, spec.width)
        self.blocks = [Block(block, spec.width) for block in spec.blocks]
        self.norm = Norm(spec.norm, spec.width)
        if not spec.tied_head:
            self.head = nn.Linear(spec.width, spec.vocab, bias=spec.head_bias)
        self._steps = Steps()

    def __call__(
        self,
        tokens: mx.array,
        cache: Sequence[AnyCache] | None = None,
        *,
        length: int | None = None,
        last: bool = False,
        tap: Tap = no_tap,
    ) -> mx.array:
        """Logits (B, T, V) of token ids (B, T) that follow what `cache` holds; it is advanced.

        `length` is the length the whole sequence will have when a prompt is fed in chunks; left
        out, the sequence ends here. `last` gives (B, 1, V), the logits after the last token only.
        """
        cache = make_cache(self.spec) if cache is None else cache
        count = tokens.shape[1]
        lengths = cache[0].lengths(count, length)
        if count == 1 and cache[0].used:
            logits = self._steps(self, tokens, cache, lengths, tap)
            if logits is not None:
                return logits
        else:
            self._steps.doubt()
        x = self.embedded(tokens, cache[0].positions, tap)
        for i, (block, past) in enumerate(zip(self.blocks, cache, strict=True)):
            x: mx.array = tap(f"blocks.{i}", block(x, past, lengths, under(tap, f"blocks.{i}")))
        return self.logits(x[:, -1:] if last else x, tap)

    def embedded(self, tokens: mx.array, start: int | mx.array, tap: Tap = no_tap) -> mx.array:
        """What enters the first block, (B, T, C). `start` is as in `Attention.heads`."""
        x = self.embed(tokens)
        if self.spec.embed_scale != 1.0:
            x = x * mx.array(self.spec.embed_scale, x.dtype)
        if self.spec.learned_positions:
            x = x + self.positions(_places(start, tokens.shape[1]))
        return tap("embed", x)

    def logits(self, x: mx.array, tap: Tap = no_tap) -> mx.array:
        """What leaves the last block, (B, T, C) -> (B, T, V)."""
        x = tap("norm", self.norm(x))
        logits = self.embed.as_linear(x) if self.spec.tied_head else self.head(x)
        logits = scaled(logits, self.spec.logit_scale)
        if self.spec.logit_softcap:
            logits = self.spec.logit_softcap * mx.tanh(logits / self.spec.logit_softcap)
        return tap("head", logits)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's path and shape."""
        flat: Any = tree_flatten(self.parameters())
        return {path: tuple(array.shape) for path, array in flat}


def _places(start: int | mx.array, count: int) -> mx.array:
    """Positions of the next tokens: (T,), or (B, T) where rows have starts of their own.

    None is negative: what stands before a row's first token is padding.
    """
    if isinstance(start, int):
        return mx.arange(start, start + count)
    return mx.maximum(start[..., None] + mx.arange(count), 0)


class Block(nn.Module):
    """One decoder layer: attention and MLP or experts, each a branch beside the residual stream."""

    def __init__(self, spec: BlockSpec, width: int) -> None:
        super().__init__()
        self._spec = spec
        attention, mlp = spec.attention, spec.mlp
        latent = isinstance(attention, LatentAttentionSpec)
        self.attn = LatentAttention(attention, width) if latent else Attention(attention, width)
        self.mlp = MLP(mlp, width) if isinstance(mlp, MLPSpec) else MoE(mlp, width)
        if spec.pre_norm:
            self.attn_norm = Norm(spec.norm, width)
            if not spec.one_norm:
                self.mlp_norm = Norm(spec.norm, width)
        if spec.post_norm:
            self.attn_post_norm = Norm(spec.norm, width)
            self.mlp_post_norm = Norm(spec.norm, width)

    def __call__(
        self, x: mx.array, cache: AnyCache, length: int | Sequence[int], tap: Tap
    ) -> mx.array:
        """(B, T, C) -> (B, T, C)"""
        normed = self._normed("attn_norm", x, tap)
        y = self.attn(normed, cache, length, under(tap, "attn"))
        return self._rest(x, normed, y, tap)

    def before(
        self, x: mx.array, start: int | mx.array, length: int | Sequence[int], tap: Tap
    ) -> tuple[mx.array, tuple[mx.array, ...]]:
        """What comes before the cache: the norm of x (B, T, C), and the heads made of it."""
        normed = self._normed("attn_norm", x, tap)
        return normed, self.attn.heads(normed, start, length, under(tap, "attn"))

    def after(self, x: mx.array, normed: mx.array, context: mx.array, tap: Tap) -> mx.array:
        """What comes after it, from what the heads gathered: (B, T, C)."""
        return self._rest(x, normed, self.attn.out(context, under(tap, "attn")), tap)

    def _rest(self, x: mx.array, normed: mx.array, y: mx.array, tap: Tap) -> mx.array:
        """From what attention gives, y (B, T, C), to the end of the block."""
        y = scaled(self._normed("attn_post_norm", tap("attn", y), tap), self._spec.residual_scale)
        between = x if self._spec.parallel else x + y
        if not self._spec.one_norm:
            normed = self._normed("mlp_norm", between, tap)
        z = tap("mlp", self.mlp(normed, under(tap, "mlp")))
        z = scaled(self._normed("mlp_post_norm", z, tap), self._spec.residual_scale)
        return x + y + z if self._spec.parallel else between + z

    def _normed(self, name: str, x: mx.array, tap: Tap) -> mx.array:
        """`x` through the norm of that name, where the block has it."""
        return tap(name, self[name](x)) if name in self else x
