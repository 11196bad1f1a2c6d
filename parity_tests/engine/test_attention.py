"""Attention against its definition in float64, one token and head at a time, in every variant."""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_unflatten

from engine.cache import Cache
from engine.layers import no_tap
from engine.layers.attention import Attention
from engine.spec import AttentionSpec, NormSpec, RopeSpec

H, K, D, C, T = 4, 2, 6, 10, 12
BASE = AttentionSpec(H, K, D, scale=0.7)
RMS, LAYER = NormSpec("rms", 1e-4), NormSpec("layer", 1e-3)
ROPE = RopeSpec(D, 50.0)

# What a variant is, and another that is near to it and is not it.
VARIANTS = {
    "no positions": (BASE, replace(BASE, rope=ROPE)),
    "rotary": (replace(BASE, rope=ROPE), BASE),
    "scale": (BASE, replace(BASE, scale=D**-0.5)),
    "window": (replace(BASE, window=4), replace(BASE, window=5)),
    "window of one": (replace(BASE, window=1), replace(BASE, window=2)),
    "window with rotary": (replace(BASE, window=4, rope=ROPE), replace(BASE, window=3, rope=ROPE)),
    "softcap": (replace(BASE, softcap=1.5), replace(BASE, softcap=1.6)),
    "softcap in a window": (replace(BASE, softcap=1.5, window=4), replace(BASE, softcap=1.5)),
    "sinks": (replace(BASE, sinks=True), BASE),
    "sinks in a window": (replace(BASE, sinks=True, window=4), replace(BASE, window=4)),
    "sinks beside bent logits": (
        replace(BASE, sinks=True, softcap=1.5),
        replace(BASE, softcap=1.5),
    ),
    "clip": (replace(BASE, clip=0.8), replace(BASE, clip=0.9)),
    "norm of each head": (replace(BASE, qk_norm=RMS), replace(BASE, qk_norm=LAYER)),
    "gain of each head": (
        replace(BASE, qk_norm=LAYER, qk_norm_over="each head"),
        replace(BASE, qk_norm=RMS, qk_norm_over="each head"),
    ),
    "norm over all heads": (replace(BASE, qk_norm=RMS, qk_norm_over="all heads"), BASE),
    "norm before rotary": (replace(BASE, qk_norm=RMS, rope=ROPE), replace(BASE, qk_norm=RMS)),
    "clip after norms": (
        replace(BASE, qk_norm=RMS, qk_norm_over="all heads", clip=0.8),
        replace(BASE, qk_norm=RMS, qk_norm_over="all heads"),
    ),
    "biases": (replace(BASE, qkv_bias=True, out_bias=True), BASE),
}
every_variant = pytest.mark.parametrize(
    ("spec", "other"), VARIANTS.values(), ids=[name.replace(" ", "-") for name in VARIANTS]
)

specs = st.builds(
    lambda kv, head_dim, bias, **fields: AttentionSpec(
        4, kv, head_dim, qkv_bias=bias, out_bias=bias, **fields
    ),
    kv=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([2, 6]),
    bias=st.booleans(),
    scale=st.sampled_from([0.3, 1.0]),
    window=st.one_of(st.none(), st.integers(1, 9)),
    softcap=st.sampled_from([None, 2.0]),
    qk_norm=st.sampled_from([None, RMS, LAYER]),
    qk_norm_over=st.sampled_from(["head", "each head", "all heads"]),
    sinks=st.booleans(),
    clip=st.sampled_from([None, 0.8]),
    rope=st.sampled_from([None, RopeSpec(2, 50.0)]),
)


def filled(spec: AttentionSpec, seed: int = 0) -> tuple[Attention, dict[str, np.ndarray]]:
    """A layer with random weights, and the weights in float64."""
    layer, rng = Attention(spec, C), np.random.default_rng(seed)
    weights = {
        path: rng.normal("norm" in path, 0.5, array.shape).astype(np.float32)
        for path, array in tree_flatten(layer.parameters())  # type: ignore[misc]
    }
    layer.update(tree_unflatten([(path, mx.array(value)) for path, value in weights.items()]))
    return layer, {path: value.astype(float) for path, value in weights.items()}


def inputs(tokens: int = T, seed: int = 0, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed + 1).normal(size=(batch, tokens, C)).astype(np.float32)


def output(
    layer: Attention, x: np.ndarray, chunks: tuple[int, ...] = (), padding=None
) -> np.ndarray:
    """(B, T, C) in one pass, or chunk by chunk through a cache."""
    cache, parts = Cache(layer._spec.window, padding), []
    for part in np.split(x, np.cumsum(chunks or (x.shape[1],))[:-1], axis=1):
        parts.append(layer(mx.array(part), cache, x.shape[1], no_tap))
    return np.array(mx.concatenate(parts, axis=1)).astype(float)


def normed(spec: AttentionSpec, y: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Queries or keys (heads, D) of one token after their norm."""
    assert spec.qk_norm is not None
    rows = y.reshape(1, -1) if spec.qk_norm_over == "all heads" else y
    if spec.qk_norm.kind == "layer":
        rows = rows - rows.mean(axis=1, keepdims=True)
    rows = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + spec.qk_norm.eps)
    return (rows * gain).reshape(y.shape)


def turned(spec: AttentionSpec, y: np.ndarray, position: int) -> np.ndarray:
    """Heads (heads, D) of one token with its position: features i and i + dims/2 turn together."""
    assert spec.rope is not None
    y, half = y.copy(), spec.rope.dims // 2
    for i in range(half):
        angle = position * spec.rope.theta ** (-i / half)
        a, b = y[:, i].copy(), y[:, i + half].copy()
        y[:, i] = a * math.cos(angle) - b * math.sin(angle)
        y[:, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return y


def definition(spec: AttentionSpec, w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """(T, C) -> (T, C)"""

    def heads(name: str, token: int) -> np.ndarray:
        y = w[f"{name}.weight"] @ x[token] + w.get(f"{name}.bias", 0.0) * spec.qkv_bias
        y = y.reshape(-1, spec.head_dim)
        if spec.qk_norm and name != "v":
            y = normed(spec, y, w[f"{name}_norm.weight"])
        if spec.clip is not None:
            y = np.minimum(np.maximum(y, -spec.clip), spec.clip)
        return turned(spec, y, token) if spec.rope and name != "v" else y

    q, k, v = ([heads(name, t) for t in range(len(x))] for name in "qkv")
    found = []
    for t in range(len(x)):
        seen = range(0 if spec.window is None else max(0, t - spec.window + 1), t + 1)
        context = []
        for h in range(spec.heads):
            g = h * spec.kv_heads // spec.heads
            logits = [spec.scale * q[t][h] @ k[s][g] for s in seen]
            if spec.softcap:
                logits = [spec.softcap * math.tanh(logit / spec.softcap) for logit in logits]
            shares = [math.exp(logit) for logit in logits]
            total = sum(shares) + (math.exp(w["sinks"][h]) if spec.sinks else 0.0)
            context.append(sum(a / total * v[s][g] for a, s in zip(shares, seen, strict=True)))
        y = w["o.weight"] @ np.concatenate(context)
        found.append(y + w["o.bias"] if spec.out_bias else y)
    return np.stack(found)


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


class TestDefinition:
    @every_variant
    def test_variant(self, spec, other):
        layer, w = filled(spec)
        x = inputs()
        found = output(layer, x)[0]
        assert difference(found, definition(spec, w, x[0].astype(float))) < 1e-5
        w = {**filled(other)[1], **w}
        assert difference(found, definition(other, w, x[0].astype(float))) > 1e-2, "it would show"

    @settings(deadline=None, max_examples=60)
    @given(spec=specs, tokens=st.integers(1, 14), seed=st.integers(0, 999))
    def test_any_of_them_together(self, spec, tokens, seed):
        layer, w = filled(spec, seed)
        x = inputs(tokens, seed)
        expected = definition(spec, w, x[0].astype(float))
        assert difference(output(layer, x)[0], expected) < 3e-5

    @every_variant
    @pytest.mark.parametrize("chunks", [(5, 7), (1,) * T, (9, 1, 2)])
    def test_through_a_cache(self, spec, other, chunks):
        layer, _ = filled(spec)
        x = inputs()
        assert difference(output(layer, x, chunks), output(layer, x)) < 1e-5

    @every_variant
    def test_rows_of_a_padded_batch(self, spec, other):
        layer, _ = filled(spec)
        x = inputs(batch=2)
        x[0, :5] = 100.0  # padding
        together = output(layer, x, (7, 1, 4), mx.array([5, 0]))
        assert difference(together[0, 5:], output(layer, x[:1, 5:])[0]) < 1e-5
        assert difference(together[1], output(layer, x[1:])[0]) < 1e-5
        assert difference(output(layer, x)[0, 5:], together[0, 5:]) > 1e-2 or spec.window == 1

    @pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
    @every_variant
    def test_dtype_of_the_model_comes_out(self, spec, other, dtype):
        layer, w = filled(spec)
        layer.set_dtype(dtype)
        x = mx.array(inputs()).astype(dtype)
        found = layer(x, Cache(spec.window), T, no_tap)
        assert found.dtype == dtype
        rows = np.array(x.astype(mx.float32))[0].astype(float)
        found = np.array(found.astype(mx.float32))[0]
        assert difference(found, definition(spec, w, rows)) < 5e-2


class TestBehaviour:
    """What each variant means, with no definition to lean on."""

    @pytest.mark.parametrize("rope", [None, ROPE])
    def test_without_positions_earlier_tokens_have_no_order(self, rope):
        layer, _ = filled(replace(BASE, rope=rope))
        x = inputs()
        shuffled = np.concatenate([x[:, T - 2 :: -1], x[:, T - 1 :]], axis=1)
        moved = difference(output(layer, shuffled)[0, -1], output(layer, x)[0, -1])
        assert moved > 1e-2 if rope else moved < 1e-5

    @pytest.mark.parametrize("window", [1, 4, T - 1, T, None])
    @pytest.mark.parametrize("softcap", [None, 1.5])
    def test_a_window_ends_where_it_says(self, window, softcap):
        """The last token sees itself and the W-1 before it: no more, and no fewer."""
        layer, _ = filled(replace(BASE, window=window, softcap=softcap))
        x = inputs()
        for first in range(T):
            changed = x.copy()
            changed[0, first] += 1.0
            moved = difference(output(layer, changed)[0, -1], output(layer, x)[0, -1])
            assert (moved > 1e-6) == (window is None or first > T - 1 - window)

    def test_nothing_is_seen_of_what_comes_after(self):
        layer, _ = filled(BASE)
        x = inputs()
        changed = x.copy()
        changed[0, 6:] += 1.0
        before, after = output(layer, x)[0], output(layer, changed)[0]
        assert difference(after[:6], before[:6]) < 1e-6 < difference(after[6], before[6])

    @pytest.mark.parametrize("sinks", [True, False])
    def test_a_sink_takes_a_share_and_gives_nothing(self, sinks):
        """Where all values are one, what comes of them is the share of the tokens."""
        layer, _ = filled(replace(BASE, sinks=sinks, qkv_bias=True, scale=0.05))
        layer.v.weight, layer.v.bias = mx.zeros((K * D, C)), mx.ones((K * D,))
        seen = {}
        layer(mx.array(inputs()), Cache(), T, lambda name, y: seen.setdefault(name, y))
        shares = np.array(seen["context"])
        assert shares.max() < 0.99 if sinks else np.allclose(shares, 1.0, atol=1e-5)
        assert shares.min() > 0

    def test_a_sink_of_minus_infinity_is_none(self):
        layer, w = filled(replace(BASE, sinks=True))
        layer.sinks = mx.full((H,), -mx.inf)
        found = output(layer, inputs())[0]
        assert difference(found, definition(BASE, w, inputs()[0].astype(float))) < 1e-5

    def test_a_cap_out_of_reach_bends_nothing(self):
        plain, _ = filled(BASE)
        bent, _ = filled(replace(BASE, softcap=1e4))
        assert difference(output(bent, inputs()), output(plain, inputs())) < 1e-5

    @pytest.mark.parametrize(("over", "moves"), [("head", False), ("all heads", True)])
    def test_what_a_norm_is_taken_over(self, over, moves):
        """One head's queries made larger: its own norm undoes that, a common one passes it on."""
        layer, _ = filled(replace(BASE, qk_norm=replace(RMS, eps=0.0), qk_norm_over=over))
        before = output(layer, inputs())
        larger = mx.concatenate([layer.q.weight[:D] * 3.0, layer.q.weight[D:]])
        layer.q.weight = larger
        assert (difference(output(layer, inputs()), before) > 1e-2) == moves

    def test_gains_of_each_head_are_its_own(self):
        layer, w = filled(replace(BASE, qk_norm=LAYER, qk_norm_over="each head"))
        assert w["q_norm.weight"].shape == (H, D) and w["k_norm.weight"].shape == (K, D)
        layer.q_norm.weight = mx.concatenate([mx.zeros((1, D)), layer.q_norm.weight[1:]])
        seen = {}
        layer(mx.array(inputs()), Cache(), T, lambda name, y: seen.setdefault(name, y))
        nothing = np.abs(np.array(seen["query"])).max(axis=(0, 2, 3)) == 0
        assert nothing.tolist() == [True, False, False, False]
