"""What is found is what was put, to the token and the bit; what is old goes; nothing leaks."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.architectures import decoder_spec
from engine.config import Config
from engine.serving.prefixes import Prefixes
from harness.random_models import config_of

K, D = 1, 3
TOKEN = 2 * K * D * 4  # bytes of a token in one block


def spec_of(family="mistral", variant="window"):
    return decoder_spec(Config(config_of(family, variant)))


def segment(spec, tokens, count):
    """Keys that depend on all tokens up to theirs, as real ones do, and on the block."""
    sums = [hash(tuple(tokens[: i + 1])) % 100003 for i in range(len(tokens))][-count:]
    blocks = range(len(spec.blocks))
    keys = [mx.array([float(s + b) for s in sums]).reshape(1, K, -1, 1) for b in blocks]
    return [(mx.broadcast_to(k, (1, K, count, D)) + 0, -k * mx.ones((1, K, 1, D))) for k in keys]


def put(prefixes, spec, tokens, length=None):
    prefixes.put(tokens, length or len(tokens), lambda n: segment(spec, tokens, n))


def common(one, other):
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def check(prefixes, spec, tokens, expected):
    """A sequence is found for `expected` tokens, and has the keys and values of these."""
    found = prefixes.find(tokens)
    assert (found[0].offset if found else 0) == expected
    if not found:
        return
    for cache, (keys, values) in zip(
        found, segment(spec, tokens[:expected], expected), strict=True
    ):
        kept = expected if cache.window is None else min(expected, cache.window - 1)
        mine, theirs = cache.last(kept), (keys[:, :, expected - kept :], values[:, :, -kept:])
        assert mx.array_equal(mine[0], theirs[0]) and mx.array_equal(mine[1], theirs[1])


sequences = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@settings(max_examples=60)
@given(st.lists(sequences, min_size=1, max_size=8), sequences, st.sampled_from([1, 3]))
def test_the_longest_common_prefix_is_found(known, asked, step):
    """Of sequences put in any order; less one token at least, which has to be fed."""
    spec = spec_of()
    prefixes = Prefixes(spec, 1 << 20, step)
    for tokens in known:
        put(prefixes, spec, tokens)
    for tokens in [asked, *known]:
        longest = min(max(common(tokens, other) for other in known), len(tokens) - 1)
        check(prefixes, spec, tokens, longest - longest % step)
    assert prefixes.find(asked, beyond=len(asked)) is None


@settings(max_examples=40)
@given(st.lists(sequences, min_size=1, max_size=20), st.integers(0, 40))
def test_the_bytes_are_counted_and_bounded(known, tokens_that_fit):
    spec = spec_of()
    limit = tokens_that_fit * TOKEN * len(spec.blocks)
    prefixes = Prefixes(spec, limit)
    for tokens in known:
        put(prefixes, spec, tokens)
        assert prefixes.nbytes == bytes_of(prefixes) <= limit
        if len(tokens) <= tokens_that_fit:
            check(prefixes, spec, [*tokens, 9], len(tokens))


def bytes_of(prefixes):
    todo, total = list(prefixes._roots.values()), 0
    while todo:
        node = todo.pop()
        total += sum(k.nbytes + v.nbytes for k, v in node.segment)
        todo += node.children.values()
    return total


def test_what_was_used_longest_ago_goes_first():
    spec = spec_of()
    prefixes = Prefixes(spec, 9 * TOKEN * len(spec.blocks))
    for first in (1, 2, 3):
        put(prefixes, spec, [first, 0, 0])
    assert prefixes.find([1, 0, 0, 5]) is not None
    put(prefixes, spec, [4, 0, 0])
    assert [len(prefixes.find([n, 0, 0, 5]) or []) > 0 for n in (1, 2, 3, 4)] == [
        True, False, True, True,
    ]  # fmt: skip


def test_the_beginning_outlives_what_follows_it():
    spec = spec_of()
    prefixes = Prefixes(spec, 6 * TOKEN * len(spec.blocks))
    put(prefixes, spec, [1, 1])
    for last in range(2, 9):
        put(prefixes, spec, [1, 1, last, last])
        check(prefixes, spec, [1, 1, last, last, 0], 4)
    check(prefixes, spec, [1, 1, 2, 2, 0], 2)


def test_what_a_window_has_dropped_is_not_kept():
    spec = spec_of()
    prefixes = Prefixes(spec, 1 << 20)
    prefixes.put([1, 2, 3], 3, lambda count: None)
    assert prefixes.find([1, 2, 3, 4]) is None and prefixes.nbytes == 0


def test_a_limit_of_nothing_keeps_nothing():
    spec = spec_of()
    prefixes = Prefixes(spec, 0)
    put(prefixes, spec, [1, 2, 3])
    assert prefixes.find([1, 2, 3, 4]) is None


def test_no_bytes_of_others_are_kept_alive():
    """A part of a node owns its memory, so that dropping the rest gives it back."""
    spec = spec_of()
    prefixes = Prefixes(spec, 1 << 30)
    before = mx.get_active_memory()

    def wide(count):
        return [(mx.zeros((1, 1, count, 1024)), mx.ones((1, 1, count, 1024))) for _ in spec.blocks]

    prefixes.put(list(range(64)), 64, wide)
    whole = mx.get_active_memory() - before
    assert whole >= prefixes.nbytes
    prefixes.put([0, 99], 2, wide)
    prefixes._drop(next(iter(prefixes._used)))  # all but the first token
    assert mx.get_active_memory() - before < whole / 8


@pytest.mark.parametrize(
    ("variant", "lengths", "shared"),
    [
        (("llama", "dynamic"), (30, 48), True),
        (("llama", "dynamic"), (48, 49), False),
        (("llama", "dynamic"), (50, 51), False),
        (("llama", "dynamic"), (51, 51), True),
        (("phi3", "longrope"), (20, 64), True),
        (("phi3", "longrope"), (64, 65), False),
        (("phi3", "longrope"), (65, 200), True),
        (("llama", "llama3"), (60, 70), True),
        (("gpt2", "plain"), (20, 200), True),
    ],
)
def test_lengths_that_have_other_keys_share_none(variant, lengths, shared):
    spec = spec_of(*variant)
    prefixes = Prefixes(spec, 1 << 20)
    one, other = lengths
    put(prefixes, spec, [1, 2, 3], one)
    found = prefixes.find([1, 2, 3] + [4] * (other - 3))
    assert (found is not None) is shared
    assert prefixes.same_era(one, other) is shared


def test_eras_without_keys_are_forgotten():
    spec = spec_of("llama", "dynamic")
    prefixes = Prefixes(spec, 3 * TOKEN * len(spec.blocks))
    for length in range(60, 90):
        put(prefixes, spec, [1, 2, 3], length)
    assert len(prefixes._roots) == 1
