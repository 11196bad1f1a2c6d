"""Attention over latent vectors: its definition in numpy, and what its cache holds."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_unflatten

from engine.cache import Cache
from engine.layers import no_tap
from engine.layers.latent_attention import LatentAttention
from engine.layers.rope import PAIRS
from engine.spec import LatentAttentionSpec, NormSpec, RopeSpec

C, THETA = 14, 50.0
PLAIN = LatentAttentionSpec(
    heads=3,
    query_rank=9,
    latent_rank=7,
    nope_dim=5,
    rope_dim=6,
    value_dim=4,
    scale=0.4,
    rope=RopeSpec(6, THETA),
    norm=NormSpec("rms", 1e-3),
    bias=True,
)

specs = st.builds(
    lambda query_rank, pairs, magnitude, bias, window: replace(
        PLAIN,
        query_rank=query_rank,
        rope=replace(PLAIN.rope, pairs=pairs, magnitude=magnitude),
        bias=bias,
        window=window,
    ),
    query_rank=st.sampled_from([None, 9]),
    pairs=st.sampled_from(PAIRS),
    magnitude=st.sampled_from([1.0, 1.3]),
    bias=st.booleans(),
    window=st.sampled_from([None, 3]),
)


def filled(spec: LatentAttentionSpec, seed: int) -> tuple[LatentAttention, dict[str, np.ndarray]]:
    """A layer with random weights, and the weights in float64."""
    layer, rng = LatentAttention(spec, C), np.random.default_rng(seed)
    flat: list = tree_flatten(layer.parameters())  # type: ignore[assignment]
    weights = {path: rng.normal(0, 0.5, a.shape).astype(np.float32) for path, a in flat}
    layer.update(tree_unflatten([(path, mx.array(value)) for path, value in weights.items()]))
    return layer, {path: value.astype(float) for path, value in weights.items()}


def inputs(tokens: int, seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed + 1).normal(size=(batch, tokens, C)).astype(np.float32)


def turned(spec: LatentAttentionSpec, x: np.ndarray, at: int) -> np.ndarray:
    """One vector (rope_dim,) at a position, as complex numbers."""
    half = spec.rope_dim // 2
    by_halves = spec.rope.pairs == "halves"
    z = x[:half] + 1j * x[half:] if by_halves else x[::2] + 1j * x[1::2]
    z = z * np.exp(1j * at / THETA ** (np.arange(half) / half)) * spec.rope.magnitude
    if spec.rope.pairs == "neighbours":
        return np.stack([z.real, z.imag], axis=-1).ravel()
    return np.concatenate([z.real, z.imag])


def linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)


def normed(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return w[f"{name}.weight"] * x / np.sqrt((x**2).mean() + PLAIN.norm.eps)


def defined(spec: LatentAttentionSpec, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The definition: (T, C) -> (T, C), token by token and head by head."""
    N, latent, queries, keys, values = spec.nope_dim, spec.latent_rank, [], [], []
    for at, row in enumerate(x):
        if spec.query_rank is None:
            q = linear(w, "q", row)
        else:
            q = linear(w, "q_up", normed(w, "q_norm", linear(w, "q_down", row)))
        q = q.reshape(spec.heads, -1)
        queries.append([np.concatenate([h[:N], turned(spec, h[N:], at)]) for h in q])
        down = linear(w, "kv_down", row)
        shared = turned(spec, down[latent:], at)
        up = linear(w, "kv_up", normed(w, "kv_norm", down[:latent])).reshape(spec.heads, -1)
        keys.append([np.concatenate([h[:N], shared]) for h in up])
        values.append([h[N:] for h in up])
    found = []
    for t in range(len(x)):
        first = 0 if spec.window is None else max(0, t + 1 - spec.window)
        context = []
        for h in range(spec.heads):
            logits = [spec.scale * queries[t][h] @ keys[s][h] for s in range(first, t + 1)]
            weights = np.exp(logits) / np.exp(logits).sum()
            context += list(weights @ [values[s][h] for s in range(first, t + 1)])
        found.append(linear(w, "o", np.array(context)))
    return np.array(found)


def close(actual: mx.array, expected: np.ndarray, tolerance: float = 2e-5) -> bool:
    return bool(np.abs(np.array(actual) - expected).max() <= tolerance * np.abs(expected).max())


@settings(deadline=None, max_examples=40)
@given(spec=specs, tokens=st.integers(1, 7), seed=st.integers(0, 999))
def test_definition(spec, tokens, seed):
    layer, w = filled(spec, seed)
    x = inputs(tokens, seed)
    found = layer(mx.array(x), Cache(spec.window), tokens, no_tap)
    assert close(found[0], defined(spec, w, x[0].astype(float)))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"scale": 0.44}, id="scale"),
        pytest.param({"norm": NormSpec("rms", 1e-1)}, id="norm"),
        pytest.param({"window": 3}, id="window"),
        pytest.param({"rope": replace(PLAIN.rope, pairs="neighbours")}, id="pairs"),
        pytest.param({"rope": replace(PLAIN.rope, theta=60.0)}, id="theta"),
        pytest.param({"rope": replace(PLAIN.rope, magnitude=1.1)}, id="magnitude"),
    ],
)
def test_each_field_matters(change):
    """The control: another spec with the same weights is not close to the definition."""
    _, w = filled(PLAIN, 0)
    x = inputs(6, 0)
    layer = LatentAttention(replace(PLAIN, **change), C)
    layer.update(tree_unflatten([(path, mx.array(a, mx.float32)) for path, a in w.items()]))
    found = layer(mx.array(x), Cache(layer._spec.window), 6, no_tap)
    assert not close(found[0], defined(PLAIN, w, x[0].astype(float)), 1e-3)


class TestCache:
    @settings(deadline=None, max_examples=30)
    @given(spec=specs, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
    def test_pieces_give_what_the_whole_gives(self, spec, sizes):
        layer, _ = filled(spec, 3)
        x, total = mx.array(inputs(sum(sizes), 3)), sum(sizes)
        whole = layer(x, Cache(spec.window), total, no_tap)
        cache, start, found = Cache(spec.window), 0, []
        for size in sizes:
            found.append(layer(x[:, start : start + size], cache, total, no_tap))
            start += size
        assert close(mx.concatenate(found, axis=1), np.array(whole), 1e-5)

    def test_one_small_vector_a_token_is_kept(self):
        layer, _ = filled(PLAIN, 0)
        cache = Cache()
        layer(mx.array(inputs(5, 0)), cache, 5, no_tap)
        latent, key = cache.update(mx.zeros((1, 1, 1, 7)), mx.zeros((1, 1, 1, 6)))
        assert latent.shape == (1, 1, 6, PLAIN.latent_rank)
        assert key.shape == (1, 1, 6, PLAIN.rope_dim)

    def test_padding_changes_no_row(self):
        layer, _ = filled(PLAIN, 1)
        x = inputs(4, 1)
        alone = layer(mx.array(x), Cache(), 4, no_tap)
        padded = mx.array(np.concatenate([np.full((1, 2, C), 9, np.float32), x], axis=1))
        both = mx.concatenate([padded, mx.array(inputs(6, 2))])
        beside = layer(both, Cache(padding=mx.array([2, 0])), 6, no_tap)
        assert close(beside[0, 2:], np.array(alone[0]), 1e-5)
        unpadded = layer(padded, Cache(), 6, no_tap)
        assert not close(unpadded[0, 2:], np.array(alone[0]), 1e-2)


def test_what_is_told():
    layer, _ = filled(PLAIN, 0)
    seen: dict[str, tuple[int, ...]] = {}

    def tap(name: str, value: mx.array) -> mx.array:
        seen[name] = tuple(value.shape)
        return value

    layer(mx.array(inputs(5, 0)), Cache(), 5, tap)
    assert seen == {
        "q_down": (1, 5, 9),
        "q_norm": (1, 5, 9),
        "q_up": (1, 5, 33),
        "kv_down": (1, 5, 13),
        "kv_norm": (1, 5, 7),
        "kv_up": (1, 5, 27),
        "query": (1, 3, 5, 11),
        "key": (1, 3, 5, 11),
        "context": (1, 5, 12),
        "o": (1, 5, C),
    }
