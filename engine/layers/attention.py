"""Grouped-query attention with the variants that `AttentionSpec` names."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import mlx.core as mx
from mlx import nn

from ..cache import AnyCache, Cache, attended
from ..kernels import ragged
from ..runtime import device_name
from ..spec import AttentionSpec
from ..weights.quantised import Packing
from . import Tap
from .norm import Norm
from .rope import Rope


class Attention(nn.Module):
    """Causal self-attention over what the cache holds and the T new tokens."""

    def __init__(self, spec: AttentionSpec, width: int) -> None:
        super().__init__()
        H, K, D = spec.heads, spec.kv_heads, spec.head_dim
        self._spec = spec
        self.q = nn.Linear(width, H * D, bias=spec.qkv_bias)
        self.k = nn.Linear(width, K * D, bias=spec.qkv_bias)
        self.v = nn.Linear(width, K * D, bias=spec.qkv_bias)
        self.o = nn.Linear(H * D, width, bias=spec.out_bias)
        if spec.qk_norm:
            self.q_norm = _head_norm(spec, H)
            self.k_norm = _head_norm(spec, K)
        if spec.sinks:
            self.sinks = mx.zeros((H,))
        self._rope = Rope(spec.rope) if spec.rope else None

    def __call__(
        self, x: mx.array, cache: AnyCache, length: int | Sequence[int], tap: Tap
    ) -> mx.array:
        """(B, T, C) -> (B, T, C). `length` is that of the whole sequence, or of each, for Rope."""
        heads = self.heads(x, cache.positions, length, tap)
        return self.out(self.attend(heads, cache, tap), tap)

    def heads(
        self, x: mx.array, start: int | mx.array, length: int | Sequence[int], tap: Tap
    ) -> tuple[mx.array, mx.array, mx.array]:
        """(B, T, C) -> queries (B, H, T, D), keys and values (B, K, T, D), at their positions.

        `start` is the position of the first token, or one a row.
        """
        spec = self._spec
        H, K, normed = spec.heads, spec.kv_heads, spec.qk_norm is not None
        by_head = normed and spec.qk_norm_over != "all heads"
        q, k, v = self._products(x, tap)
        if normed and not by_head:
            q, k = tap("q_norm", self.q_norm(q)), tap("k_norm", self.k_norm(k))
        q, k, v = split(q, H), split(k, K), split(v, K)
        if by_head:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.transpose(0, 2, 1, 3) for y in (q, k, v))  # -> (B, H, T, D)
        if by_head:
            q, k = tap("q_norm", q), tap("k_norm", k)
        if spec.clip is not None:
            q, k, v = (mx.clip(y, -spec.clip, spec.clip) for y in (q, k, v))
        if self._rope:
            q, k = self._rope(q, start, length), self._rope(k, start, length)
        return tap("query", q), tap("key", k), v

    def attend(self, heads: Sequence[mx.array], cache: AnyCache, tap: Tap) -> mx.array:
        """What the heads gather of the cache and of the new tokens: (B, T, H*D)."""
        return attended(self._context, cache, *heads)

    def out(self, context: mx.array, tap: Tap) -> mx.array:
        """(B, T, H*D) -> (B, T, C)"""
        return tap("o", self.o(tap("context", context)))

    def _products(self, x: mx.array, tap: Tap) -> tuple[mx.array, mx.array, mx.array]:
        """(B, T, C) -> (B, T, H*D), (B, T, K*D) twice"""
        return tap("q", self.q(x)), tap("k", self.k(x)), tap("v", self.v(x))

    def _context(self, cache: Cache, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """(B, H, T, D), (B, K, T, D) twice -> (B, T, H*D)"""
        spec, T, packing = self._spec, q.shape[2], cache.packing
        plain = spec.softcap is None and not spec.sinks
        # What stands in for a cache may give back other keys than lie in its buffers.
        own = isinstance(cache, Cache)
        if plain and own and ragged.takes(q, k, v, cache.held + T, packing):
            cache.append(k, v)
            return flat(ragged.attend(q, cache.arrays, cache.spans, spec.scale, packing))
        # MLX has no product of this kind on CUDA.
        if packing is not None and T == 1 and device_name() != "cuda":
            parts = cache.append(k, v)
            mask = mask_for(cache, T, parts[0].shape[2], spec.window)
            how = spec.scale, mask, spec.softcap, self.get("sinks")
            return flat(attend_packed(q, parts, packing, *how))
        k, v = cache.update(k, v)
        mask = mask_for(cache, T, k.shape[2], spec.window)
        return flat(attend(q, k, v, spec.scale, mask, spec.softcap, self.get("sinks")))


def split(y: mx.array, heads: int) -> mx.array:
    """(B, T, H*D) -> (B, T, H, D)"""
    return y.reshape(*y.shape[:-1], heads, -1)


def flat(y: mx.array) -> mx.array:
    """(B, H, T, D) -> (B, T, H*D)"""
    B, H, T, D = y.shape
    # One token's numbers are in this order already.
    return (y if T == 1 else y.transpose(0, 2, 1, 3)).reshape(B, T, H * D)


def _head_norm(spec: AttentionSpec, heads: int) -> Norm:
    """The norm of queries or keys, over what `qk_norm_over` says."""
    assert spec.qk_norm is not None
    if spec.qk_norm_over == "all heads":
        return Norm(spec.qk_norm, heads * spec.head_dim)
    return Norm(spec.qk_norm, spec.head_dim, heads if spec.qk_norm_over == "each head" else None)


def mask_for(cache: Cache, queries: int, keys: int, window: int | None) -> mx.array | str | None:
    """What `queries` new tokens, which the cache has taken already, may see of `keys`."""
    offset = None if cache.padding is None else cache.offset - queries
    return _mask(threading.current_thread(), queries, keys, window, cache.pads, offset)


@lru_cache(maxsize=4)  # all blocks of one kind ask for the same
def _mask(
    thread: threading.Thread,  # whose stream would make it
    queries: int,
    keys: int,
    window: int | None,
    pads: tuple[int, ...] | None,
    offset: int | None,
) -> mx.array | str | None:
    mask = causal_mask(queries, keys, window)
    if pads is None or offset is None:
        return mask
    return padded_mask(mask, queries, keys, offset, mx.array(pads))


def causal_mask(queries: int, keys: int, window: int | None) -> mx.array | str | None:
    """Which of the last `keys` positions the last `queries` may see: (T, S) booleans.

    None where all may be seen, "causal" where the fused kernel's own mask is enough.
    """
    if queries == 1 and (window is None or keys <= window):
        return None
    if window is None or keys <= window:
        return "causal"
    at = mx.arange(keys - queries, keys)[:, None]
    seen = mx.arange(keys)[None]
    return (seen <= at) & (seen > at - window)


def padded_mask(
    mask: mx.array | str | None, queries: int, keys: int, offset: int, padding: mx.array
) -> mx.array:
    """A causal mask less the padding (B,) in front of each row: (B, 1, T, S) booleans.

    The queries begin at `offset`. A query that is padding itself sees itself alone: nothing at all
    would be 0/0, which spreads through values that are not finite.
    """
    key = mx.arange(offset + queries - keys, offset + queries)[None]
    if queries == 1 and mask is None:
        return (key >= mx.minimum(padding, offset)[:, None])[:, None, None]
    at = mx.arange(offset, offset + queries)[:, None]
    seen = mask if isinstance(mask, mx.array) else key <= at
    real = key[None] >= padding[:, None, None]  # (B, 1, S)
    return ((seen[None] & real) | (key == at)[None])[:, None]


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    mask: mx.array | str | None,
    softcap: float | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """softmax(scale * q k^T, masked) v: (B, H, T, D) over (B, K, S, D) -> (B, H, T, D).

    The width of the values may be another than D. `sinks` (H,) are one more logit for each head.
    """
    sinks = None if sinks is None else sinks.astype(q.dtype)
    if softcap is None:
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)

    # No fused kernel bends logits, so the products are written out.
    B, H, T, D = q.shape
    K = k.shape[1]
    q = (q * scale).reshape(B, K, H // K, T, D)
    logits = q @ k[:, :, None].swapaxes(-1, -2)  # (B, K, H/K, T, S)
    weights = _weights(logits, mask, softcap, sinks)
    return (weights @ v[:, :, None]).reshape(B, H, T, -1)


def attend_packed(
    q: mx.array,
    parts: Sequence[mx.array],
    packing: Packing,
    scale: float,
    mask: mx.array | str | None,
    softcap: float | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """`attend` over keys and values as a packed cache has them, which are not unpacked.

    All of it in float32: nothing is rounded but what is kept.
    """
    B, H, T, D = q.shape
    _, K, S, _ = parts[0].shape
    keys, values = parts[: len(packing.parts)], parts[len(packing.parts) :]
    # All queries of a key are rows of one product: packed numbers are not repeated for each.
    x = (q.astype(mx.float32) * scale).reshape(B, K, -1, D)  # (B, H, T, D) -> (B, K, H/K*T, D)
    logits = mx.quantized_matmul(x, *keys, transpose=True, **packing.settings)
    weights = _weights(logits.reshape(B, K, H // K, T, S), mask, softcap, sinks)
    weights = weights.reshape(B, K, -1, S)  # (B, K, H/K, T, S) -> (B, K, H/K*T, S)
    y = mx.quantized_matmul(weights, *values, transpose=False, **packing.settings)
    return y.reshape(B, H, T, -1).astype(q.dtype)


def _weights(
    logits: mx.array,
    mask: mx.array | str | None,
    softcap: float | None,
    sinks: mx.array | None,
) -> mx.array:
    """The softmax of logits (B, K, H/K, T, S), bent and masked; with sinks their share is gone."""
    B, K, G, T, S = logits.shape
    if softcap is not None:
        logits = softcap * mx.tanh(logits / softcap)
    if isinstance(mask, str):
        mask = mx.arange(S)[None] <= mx.arange(S - T, S)[:, None]
    if mask is not None:
        mask = mask[:, :, None] if mask.ndim == 4 else mask  # (B, 1, 1, T, S)
        logits = mx.where(mask, logits, mx.array(-mx.inf, logits.dtype))
    if sinks is not None:
        column = mx.broadcast_to(sinks.reshape(1, K, G, 1, 1), (B, K, G, T, 1))
        logits = mx.concatenate([logits, column.astype(logits.dtype)], axis=-1)
    return mx.softmax(logits, axis=-1, precise=True)[..., :S]
