"""Attention over latent vectors: keys and values are made of one small vector a token.

What is cached is the latent vector and the rotated part of the key, which all heads share; keys and
values are made of them anew. Source: DeepSeek-V2, section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn

from ..cache import AnyCache, Cache, attended
from ..spec import LatentAttentionSpec
from . import Tap
from .attention import attend, flat, mask_for, split
from .norm import Norm
from .rope import Rope


class LatentAttention(nn.Module):
    """Causal self-attention over what the cache holds and the T new tokens."""

    def __init__(self, spec: LatentAttentionSpec, width: int) -> None:
        super().__init__()
        H, D = spec.heads, spec.head_dim
        self._spec = spec
        if spec.query_rank is None:
            self.q = nn.Linear(width, H * D, bias=False)
        else:
            self.q_down = nn.Linear(width, spec.query_rank, bias=spec.bias)
            self.q_norm = Norm(spec.norm, spec.query_rank)
            self.q_up = nn.Linear(spec.query_rank, H * D, bias=False)
        self.kv_down = nn.Linear(width, spec.latent_rank + spec.rope_dim, bias=spec.bias)
        self.kv_norm = Norm(spec.norm, spec.latent_rank)
        self.kv_up = nn.Linear(spec.latent_rank, H * (spec.nope_dim + spec.value_dim), bias=False)
        self.o = nn.Linear(H * spec.value_dim, width, bias=spec.bias)
        self._rope = Rope(spec.rope)

    def __call__(
        self, x: mx.array, cache: AnyCache, length: int | Sequence[int], tap: Tap
    ) -> mx.array:
        """(B, T, C) -> (B, T, C). `length` is that of the whole sequence, or of each, for Rope."""
        heads = self.heads(x, cache.positions, length, tap)
        return self.out(self.attend(heads, cache, tap), tap)

    def heads(
        self, x: mx.array, start: int | mx.array, length: int | Sequence[int], tap: Tap
    ) -> tuple[mx.array, mx.array, mx.array]:
        """(B, T, C) -> queries (B, H, T, D), and what is cached: the latent vectors and the keys'
        rotated part, (B, 1, T, rank) and (B, 1, T, rope_dim).

        `start` is the position of the first token, or one a row.
        """
        spec, N = self._spec, self._spec.nope_dim
        q, down = self._queries(x, tap), tap("kv_down", self.kv_down(x))
        q = split(q, spec.heads).transpose(0, 2, 1, 3)
        q = mx.concatenate([q[..., :N], self._rope(q[..., N:], start, length)], axis=-1)
        latent = tap("kv_norm", self.kv_norm(down[..., : spec.latent_rank]))
        turned = self._rope(down[:, None, :, spec.latent_rank :], start, length)
        return q, latent[:, None], turned

    def attend(self, heads: Sequence[mx.array], cache: AnyCache, tap: Tap) -> mx.array:
        """What the heads gather of the cache and of the new tokens: (B, T, H*value_dim)."""

        def context(cache: Cache, q: mx.array, latent: mx.array, turned: mx.array) -> mx.array:
            return self._context(cache, q, latent, turned, tap)

        return attended(context, cache, *heads)

    def out(self, context: mx.array, tap: Tap) -> mx.array:
        """(B, T, H*value_dim) -> (B, T, C)"""
        return tap("o", self.o(tap("context", context)))

    def _context(
        self, cache: Cache, q: mx.array, latent: mx.array, turned: mx.array, tap: Tap
    ) -> mx.array:
        spec, T = self._spec, q.shape[2]
        latent, turned = cache.update(latent, turned)  # (B, 1, S, rank or rope_dim)
        B, _, S, _ = latent.shape
        H, N = spec.heads, spec.nope_dim

        # (B, S, H*(N + value_dim)) -> (B, H, S, N + value_dim)
        up = self.kv_up(latent[:, 0])
        up = split(tap("kv_up", up) if S == T else up, H).transpose(0, 2, 1, 3)
        shared = mx.broadcast_to(turned, (B, H, S, spec.rope_dim))
        k = mx.concatenate([up[..., :N], shared], axis=-1)
        q, k = tap("query", q), (tap("key", k) if S == T else k)
        return flat(attend(q, k, up[..., N:], spec.scale, mask_for(cache, T, S, spec.window)))

    def _queries(self, x: mx.array, tap: Tap) -> mx.array:
        """(B, T, C) -> (B, T, H*D)"""
        if "q" in self:
            return tap("q", self.q(x))
        x = tap("q_norm", self.q_norm(tap("q_down", self.q_down(x))))
        return tap("q_up", self.q_up(x))
