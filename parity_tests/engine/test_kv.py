"""Packed keys and values: what they stand for is what is given back, whoever comes and goes."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import SPARE, STEP, Cache, make_cache, restored
from engine.errors import InvalidRequest
from engine.kv import packing_of
from engine.layers.attention import attend, attend_packed
from engine.weights.quantised import Packing
from harness.checks.kv_cache import EPS, steps_off
from parity_tests.engine.test_cache import random_decoder

PACKINGS = st.builds(Packing, st.sampled_from([64, 32]), st.sampled_from([8, 4]))
K, D = 2, 64
LATENT = ("deepseek_v2", "groups", {"kv_lora_rank": 64, "qk_rope_head_dim": 32})
MODELS = [
    ("llama", "llama3", {"head_dim": 64}),
    ("gemma3_text", "local-global", {"head_dim": 32}),
    ("gemma2", "softcaps", {"head_dim": 64}),
    ("gpt_oss", "plain", {"head_dim": 64}),
    LATENT,
]


def drawn(seed: int, count: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    """(1, K, count, D), away from zero and of unequal sizes."""
    key = mx.random.key(seed)
    x = mx.random.normal((1, K, count, D), key=key) * mx.random.uniform(0.1, 9, (1, K, count, 1))
    return (x + 3).astype(dtype)


def numbers(x: mx.array) -> np.ndarray:
    return np.array(x if x.dtype == mx.uint32 else x.astype(mx.float32))


def rounded(x: mx.array, packing: Packing) -> mx.array:
    """What packed numbers stand for, by the definition of the format, read from the words."""
    parts = {name: numbers(part) for name, part in packing.pack(x).items()}
    words, bits = parts["weight"], packing.bits
    codes = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & (2**bits - 1)
    codes = codes.reshape(*x.shape[:-1], -1, packing.group_size)
    scaled = codes * parts["scales"][..., None] + parts["biases"][..., None]
    return mx.array(scaled.reshape(x.shape).astype(np.float32))


@given(
    packing=PACKINGS,
    window=st.sampled_from([None, 3, 300]),
    chunks=st.lists(st.integers(1, 300), min_size=1, max_size=4),
)
@settings(max_examples=25)
def test_what_comes_back_is_what_the_packed_numbers_stand_for(packing, window, chunks):
    cache, plain = Cache(window, packing=packing), Cache(window)
    for seed, count in enumerate(chunks):
        new = drawn(seed, count), -drawn(seed + 99, count)
        found = cache.update(*new)
        expected = plain.update(*(rounded(x, packing) for x in new))
        for ours, right in zip(found, expected, strict=True):
            assert ours.dtype == mx.float32
            assert mx.allclose(ours, right, rtol=1e-5, atol=1e-5)
    cache.compact()
    assert cache.nbytes < plain.nbytes * (packing.bits / 32 + 2 / packing.group_size) * 1.01


@given(packing=PACKINGS, dtype=st.sampled_from(sorted(EPS)), data=st.data())
@settings(max_examples=25)
def test_nothing_comes_back_further_than_a_step(packing, dtype, data):
    scale = data.draw(st.sampled_from([1e-3, 1.0, 300.0]))
    x = (drawn(data.draw(st.integers(0, 999)), 5) * scale).astype(getattr(mx, dtype))
    found, _ = Cache(packing=packing).update(x, x)
    assert found.dtype == x.dtype
    assert steps_off(numbers(x), numbers(found), packing, EPS[dtype]) <= 1
    coarser = rounded(x, Packing(packing.group_size, packing.bits // 2))
    assert steps_off(numbers(x), numbers(coarser), packing, EPS[dtype]) > 1


@given(data=st.data(), packing=PACKINGS, window=st.sampled_from([None, 1, 4, 9]))
@settings(max_examples=25)
def test_rows_come_and_go_as_those_of_a_plain_cache(data, packing, window):
    packed, plain = Cache(window, packing=packing), Cache(window)
    rows, seed = 0, 0

    def fed(lengths: list[int]) -> tuple[Cache, Cache]:
        nonlocal seed
        one, other = Cache(window, packing=packing), Cache(window)
        for count in lengths:
            seed += 1
            new = drawn(seed, count), drawn(seed + 500, count)
            one.update(*new)
            other.update(*(rounded(x, packing) for x in new))
        return one, other

    for _ in range(data.draw(st.integers(1, 4))):
        if rows < 2 or data.draw(st.booleans()):
            new = [fed(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))]
            packed = packed.joined([one for one, _ in new])
            plain = plain.joined([other for _, other in new])
            rows += len(new)
        else:
            stay = data.draw(st.permutations(range(rows)))[:-1]
            packed, plain, rows = packed.take(stay), plain.take(stay), len(stay)
        seed += 1
        new = mx.concatenate([drawn(seed + row, 1) for row in range(rows)])
        found = packed.update(new, -new)
        expected = plain.update(rounded(new, packing), rounded(-new, packing))
        for ours, right in zip(found, expected, strict=True):
            assert mx.allclose(ours, right, rtol=1e-5, atol=1e-5)
        assert packed.lengths(0) == plain.lengths(0)


def test_what_is_restored_goes_on_as_what_was_fed():
    packing = Packing(32, 4)
    fed = Cache(packing=packing)
    fed.update(drawn(1, 20), drawn(2, 20))
    last = fed.last(20)
    assert last is not None and len(last) == 6
    again = restored(5, *last, packing=packing)
    new = drawn(3, 1), drawn(4, 1)
    for ours, right in zip(again.update(*new), fed.update(*new), strict=True):
        assert mx.array_equal(ours, right[:, :, -5:])


@pytest.mark.parametrize(("family", "variant", "changes"), MODELS)
def test_chunks_change_far_less_than_packing_does(family, variant, changes):
    """A key that rounds to the next point, since a product was summed otherwise, is one of many."""
    decoder = random_decoder(family, variant, **changes)
    packing = packing_of(decoder.spec, 8)
    tokens = mx.array(np.random.default_rng(0).integers(0, decoder.spec.vocab, (1, 30)))

    def logits(cuts: list[int], packing: Packing | None) -> mx.array:
        cache, ends = make_cache(decoder.spec, packing=packing), [*cuts, 30]
        parts = [tokens[:, a:b] for a, b in zip([0, *cuts], ends, strict=True)]
        return mx.concatenate([decoder(part, cache, length=30) for part in parts], axis=1)

    plain, whole = logits([], None), logits([], packing)
    loss = mx.abs(whole - plain).max()
    for cuts in ([7, 8, 9], [1, 20], list(range(10, 30))):
        assert (mx.abs(logits(cuts, packing) - whole).max() < loss / 3).item()
    assert loss.item() > 0


@pytest.mark.parametrize("dtype", sorted(EPS))
@pytest.mark.parametrize("packing", [Packing(64, 8), Packing(32, 4)])
def test_products_of_packed_numbers_are_those_of_what_they_stand_for(dtype, packing):
    """With padding, a soft-cap and sinks; forgotten biases would show."""
    q = mx.random.normal((2, 2 * K, 1, D), key=mx.random.key(5)).astype(getattr(mx, dtype))
    keys, values = (mx.concatenate([drawn(n, 9), drawn(n + 1, 9)]).astype(q.dtype) for n in (1, 3))
    mask = mx.arange(9)[None] >= mx.array([[3], [0]])
    how = 0.2, mask[:, None, None], 7.0, mx.array([0.5, 2.0, -1.0, 0.0])
    parts = Cache(packing=packing).append(keys, values)
    exact = [
        packing.unpack(dict(zip(packing.parts, some, strict=True)))
        for some in (parts[:3], parts[3:])
    ]
    expected = attend(q.astype(mx.float32), *exact, *how)
    found = attend_packed(q, parts, packing, *how)
    assert found.dtype == q.dtype
    tolerance = 4 * EPS[dtype] + 1e-5
    largest = mx.abs(expected).max()
    assert (mx.abs(found.astype(mx.float32) - expected).max() / largest).item() < tolerance
    wrong = attend_packed(q, [*parts[:5], parts[5] * 0], packing, *how).astype(mx.float32)
    assert (mx.abs(wrong - expected).max() / largest).item() > 10 * tolerance


def test_windows_bound_packed_caches_too():
    packing, count = Packing(32, 8), 3 * STEP
    for window in (None, 8):
        packed, plain = Cache(window, packing=packing), Cache(window)
        for i in range(count // 16):
            for cache in (packed, plain):
                cache.update(drawn(i, 16), drawn(i, 16))
        room = STEP + SPARE if window else count + SPARE
        assert plain.nbytes == 2 * K * D * 4 * room
        assert packed.nbytes == 2 * K * (D + 2 * 4 * D // 32) * room


@pytest.mark.parametrize(
    ("head", "bits", "group", "words"),
    [
        (64, 5, None, "--kv-bits 5: keys and values are packed in 8 or 4 bits"),
        (24, 8, None, "are 24 wide, which is not made of groups of 64 or 32"),
        (96, 8, 64, "--kv-group-size 64: keys and values of this llama are 96 wide: choose 32"),
        (64, 8, 16, "choose 64 or 32"),
        (64, None, 64, "--kv-group-size 64 packs nothing without --kv-bits"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(head, bits, group, words):
    spec = random_decoder("llama", "llama3", head_dim=head).spec
    with pytest.raises(InvalidRequest, match=words):
        packing_of(spec, bits, group)


def test_the_largest_group_that_fits_is_taken():
    for head, group in ((128, 64), (64, 64), (96, 32), (32, 32)):
        spec = random_decoder("llama", "llama3", head_dim=head).spec
        assert packing_of(spec, 4) == Packing(group, 4)
    spec = random_decoder(*LATENT[:2], **LATENT[2]).spec
    assert packing_of(spec, 8) == Packing(32, 8)
    assert packing_of(spec, None) is None
