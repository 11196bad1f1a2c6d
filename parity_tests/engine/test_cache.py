"""However a sequence is fed through the cache, it is the same sequence."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.architectures import decoder_spec
from engine.cache import STEP, Apart, Cache, attended, make_cache, restored, stacked
from engine.config import Config
from engine.decoder import Decoder
from engine.layers.attention import mask_for
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
@settings(max_examples=2)
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


def random_decoder(family: str, variant: str, seed: int = 1, **changes: object) -> Decoder:
    mx.random.seed(seed)
    return Decoder(decoder_spec(Config({**config_of(family, variant), **changes})))


# Rows that come and go


def numbered(row: int, first: int, count: int) -> mx.array:
    """(1, 2, count, 3): tokens that know their row and position."""
    at = mx.arange(first, first + count, dtype=mx.float32) + 1000.0 * row
    return mx.broadcast_to(at[None, None, :, None], (1, 2, count, 3))


def seen_by_rows(cache: Cache, keys: mx.array, window: int | None) -> list[list[float]]:
    """What the last token of each row may see, by the cache's mask."""
    mask = mask_for(cache, 1, keys.shape[2], window)
    B, S = keys.shape[0], keys.shape[2]
    mask = mx.ones((B, S), mx.bool_) if mask is None else mx.broadcast_to(mask, (B, 1, 1, S))
    marks = mask.reshape(B, S).tolist()
    return [
        [key for key, seen in zip(row, of_row, strict=True) if seen]
        for row, of_row in zip(keys[:, 0, :, 0].tolist(), marks, strict=True)
    ]


def seen_by_spans(cache: Cache) -> list[list[float]]:
    """The same by where the cache says that each row begins and ends in its buffers."""
    return [
        row[first:end]
        for row, (first, end) in zip(
            cache.arrays[0][:, 0, :, 0].tolist(), cache.spans.tolist(), strict=True
        )
    ]


def alone_with(row: int, lengths: list[int], window: int | None) -> Cache:
    """A cache of one row, fed in chunks."""
    cache, first = Cache(window), 0
    for count in lengths:
        cache.update(numbered(row, first, count), -numbered(row, first, count))
        first += count
    return cache


@settings(max_examples=150)
@given(data=st.data())
def test_rows_that_join_and_leave_see_their_own_tokens(data):
    window = data.draw(st.sampled_from([None, 1, 2, 5, 9]))
    batch, rows, made = Cache(window), [], 0  # rows: [number, length]
    for _ in range(data.draw(st.integers(1, 8))):
        what = data.draw(st.sampled_from(["join", "leave", "step"])) if rows else "join"
        if what == "join":
            new = data.draw(st.lists(st.lists(st.integers(1, 9), min_size=1), min_size=1))
            numbers = range(made, made + len(new))
            caches = [
                alone_with(number, chunks, window)
                for number, chunks in zip(numbers, new, strict=True)
            ]
            if data.draw(st.booleans()):
                for cache in caches:
                    cache.compact()
            batch = batch.joined(caches)
            rows += [[number, sum(chunks)] for number, chunks in zip(numbers, new, strict=True)]
            made += len(new)
        elif what == "leave" and len(rows) > 1:
            stay = data.draw(st.permutations(range(len(rows))))[: max(1, len(rows) // 2)]
            batch, rows = batch.take(stay), [rows[row] for row in stay]
        for _ in range(data.draw(st.integers(1, 3))):
            new = mx.concatenate([numbered(number, length, 1) for number, length in rows])
            keys, _ = batch.update(new, -new)
            for row in rows:
                row[1] += 1
            expected = [
                [1000.0 * n + i for i in range(0 if window is None else max(0, L - window), L)]
                for n, L in rows
            ]
            assert seen_by_rows(batch, keys, window) == expected
            assert seen_by_spans(batch) == expected
        lengths = batch.lengths(0)
        lengths = [lengths] * len(rows) if isinstance(lengths, int) else list(lengths)
        assert lengths == [length for _, length in rows]
        assert max(lengths) == batch.offset, "padding that all rows have is gone"
        for row, (number, length) in enumerate(rows):
            count = data.draw(st.integers(1, length))
            if (found := batch.last(count, row)) is None:
                assert window is not None and count > window - 1
            else:
                expected = numbered(number, length - count, count)
                assert mx.array_equal(found[0], expected)
                assert mx.array_equal(found[1], -expected)


def test_padding_that_is_off_by_one_would_be_seen():
    batch = stacked([alone_with(0, [5], None), alone_with(1, [3], None)])
    wrong = Cache(None, [0, 1])
    wrong.offset = batch.offset
    wrong._hold([buffer[:, :, :5] for buffer in batch._buffers])
    for cache, right in ((batch, True), (wrong, False)):
        new = mx.concatenate([numbered(0, 5, 1), numbered(1, 3, 1)])
        keys, _ = cache.update(new, -new)
        assert (len(seen_by_rows(cache, keys, None)[1]) == 4) is right


@given(window=st.sampled_from([None, 1, 4, 300]), chunks=st.lists(st.integers(1, 300), min_size=1))
@settings(max_examples=30)
def test_what_is_restored_is_what_was_fed_buffers_included(window, chunks):
    """A deterministic run may not differ by where a prefix came from."""
    fed, total = alone_with(3, chunks, window), sum(chunks)
    fed.compact()
    made = restored(window, numbered(3, 0, total), -numbered(3, 0, total))
    assert made.offset == fed.offset
    for name in ("_start", "_end"):
        assert getattr(made, name) == getattr(fed, name)
    for ours, theirs in zip(made._buffers, fed._buffers, strict=True):
        assert ours.shape == theirs.shape
        assert mx.array_equal(ours[:, :, : made._end], theirs[:, :, : made._end])


def test_sequences_apart_are_attended_to_one_by_one():
    caches = [alone_with(0, [5], None), alone_with(1, [3], None)]
    apart = Apart(caches, 4)
    assert apart.positions.tolist() == [5, 3, 0, 0]
    assert apart.lengths(1) == (6, 4, 1, 1)

    def attention(cache: Cache, x: mx.array) -> mx.array:
        return x * cache.offset

    y = attended(attention, apart, mx.ones((4, 1, 2)))
    assert y[:, 0, 0].tolist() == [5, 3, 0, 0]
    assert apart.take([1]).positions.tolist() == [3, 0, 0, 0]
