"""However a sequence is fed through the cache, it is the same sequence."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.architectures import decoder_spec
from engine.cache import STEP, Cache, make_cache
from engine.config import Config
from engine.decoder import Decoder
from harness.random_models import config_of, variants


def kv(start: int, count: int) -> mx.array:
    """(1, 2, count, 3): tokens that know their position."""
    at = mx.arange(start, start + count, dtype=mx.float32)
    return mx.broadcast_to(at[None, None, :, None], (1, 2, count, 3))


@given(
    window=st.one_of(st.none(), st.integers(1, 9)),
    chunks=st.lists(st.integers(1, 12), min_size=1, max_size=8),
)
def test_update_returns_what_may_be_seen_in_time_order(window, chunks):
    cache, start = Cache(window), 0
    for size in chunks:
        keys, values = cache.update(kv(start, size), -kv(start, size))
        start += size
        first = 0 if window is None else max(0, start - size - (window - 1))
        expected = list(range(first, start))
        assert keys[0, 0, :, 0].tolist() == expected
        assert (-values[0, 1, :, 2]).tolist() == expected
        assert cache.offset == start


def test_a_window_bounds_the_memory():
    windowed, plain = Cache(8), Cache()
    for i in range(3 * STEP):
        for cache in (windowed, plain):
            cache.update(kv(i, 1), kv(i, 1))
    assert windowed.nbytes < plain.nbytes / 2


@pytest.mark.parametrize(("family", "variant"), variants())
@settings(max_examples=5)
@given(data=st.data())
def test_chunks_give_the_logits_of_one_pass(family, variant, data):
    decoder = random_decoder(family, variant)
    total = 30
    cuts = sorted(data.draw(st.sets(st.integers(1, total - 1), max_size=5)))
    tokens = mx.array(np.random.default_rng(0).integers(0, decoder.spec.vocab, (1, total)))
    whole = decoder(tokens)
    cache, parts = make_cache(decoder.spec), []
    for a, b in zip([0, *cuts], [*cuts, total], strict=True):
        parts.append(decoder(tokens[:, a:b], cache, length=total))
    difference = mx.abs(mx.concatenate(parts, axis=1) - whole).max() / mx.abs(whole).max()
    assert difference.item() < 1e-5


def test_a_cache_without_the_offset_would_be_seen():
    """Negative control: the comparison above fails for a cache that forgets its position."""
    decoder = random_decoder("llama", "llama3")
    tokens = mx.array(np.random.default_rng(0).integers(0, decoder.spec.vocab, (1, 30)))
    cache = make_cache(decoder.spec)
    decoder(tokens[:, :20], cache)
    for layer in cache:
        layer.offset = 0
    wrong = decoder(tokens[:, 20:], cache)
    right = decoder(tokens)[:, 20:]
    assert (mx.abs(wrong - right).max() / mx.abs(right).max()).item() > 1e-3


def random_decoder(family: str, variant: str) -> Decoder:
    mx.random.seed(1)
    return Decoder(decoder_spec(Config(config_of(family, variant))))
