"""Rows of a left-padded batch are what each sequence is alone, in every family."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import make_cache
from engine.layers.attention import causal_mask, padded_mask
from engine.model import load
from harness.random_models import variants

SEQUENCES = [[5, 77, 12, 9, 100, 3, 55, 21, 8, 64, 31, 2, 90], [7, 8, 9], [41, 3, 3, 120, 6, 17, 1]]
LONGEST = max(map(len, SEQUENCES))
PADDING = [LONGEST - len(row) for row in SEQUENCES]


def padded(pad=0):
    rows = [[pad] * n + row for n, row in zip(PADDING, SEQUENCES, strict=True)]
    return mx.array(rows)


def alone(decoder):
    return [np.array(decoder(mx.array([row])))[0] for row in SEQUENCES]


def in_pieces(decoder, ids, padding, sizes):
    cache, parts, start = make_cache(decoder.spec, padding), [], 0
    for size in sizes:
        parts.append(decoder(ids[:, start : start + size], cache))
        start += size
    return np.array(mx.concatenate(parts, axis=1))


def worst(logits, expected, padding=PADDING):
    rows = [row[n:] for row, n in zip(logits, padding, strict=True)]
    return max(
        float(np.abs(a - e).max() / np.abs(e).max()) for a, e in zip(rows, expected, strict=True)
    )


@pytest.mark.parametrize("sizes", [[LONGEST], [5, 1, 7], [2, 9, 2], [4] + [1] * (LONGEST - 4)])
@pytest.mark.parametrize(("family", "variant"), variants())
def test_rows_are_what_they_are_alone(random_model, family, variant, sizes):
    """In one pass, in chunks that end within padding and past windows, and decoded."""
    decoder = load(random_model(family, variant), dtype="float32").decoder
    expected = alone(decoder)
    assert worst(in_pieces(decoder, padded(), PADDING, sizes), expected) < 2e-5
    ignored = in_pieces(decoder, padded(), None, sizes)
    assert worst(ignored, expected) > 1e-2, "padding that is ignored shows"


@pytest.mark.parametrize(("family", "variant"), variants())
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_rows_of_any_lengths_in_any_chunks(random_model, family, variant, data):
    """Rows may all begin with padding, and a batch may be one row."""
    decoder = load(random_model(family, variant), dtype="float32").decoder
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    total = max(lengths) + data.draw(st.integers(0, 12))
    cuts = sorted(data.draw(st.sets(st.integers(1, total), max_size=4)) | {total})
    ids = np.random.default_rng(0).integers(0, decoder.spec.vocab, (len(lengths), total))
    padding = [total - n for n in lengths]
    sizes = np.diff([0, *cuts]).tolist()
    rows = [
        np.array(decoder(mx.array(row[None, n:])))[0] for row, n in zip(ids, padding, strict=True)
    ]
    assert worst(in_pieces(decoder, mx.array(ids), padding, sizes), rows, padding) < 2e-5


def test_what_stands_in_the_padding_does_not_matter(random_model):
    decoder = load(random_model("mistral", "window"), dtype="float32").decoder
    one, other = (in_pieces(decoder, padded(p), PADDING, [LONGEST]) for p in (0, 99))
    for row, n in enumerate(PADDING):
        assert np.array_equal(one[row, n:], other[row, n:])


def test_no_padding_is_the_plain_path(random_model):
    decoder = load(random_model("llama", "tied"), dtype="float32").decoder
    assert make_cache(decoder.spec, [0, 0])[0].padding is None


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 9),
    st.one_of(st.none(), st.integers(1, 7)),
)
def test_the_padded_mask_is_its_definition(padding, queries, before, window):
    """A query sees keys that are not after it, not padding and within the window; or itself."""
    keys = before + queries
    mask = padded_mask(causal_mask(queries, keys, window), queries, keys, before, mx.array(padding))
    assert mask.shape == (len(padding), 1, queries, keys)
    for row, pads in enumerate(padding):
        for t in range(queries):
            at = before + t
            for key in range(keys):
                visible = pads <= key <= at and (window is None or key > at - window)
                assert bool(mask[row, 0, t, key]) == (visible or key == at)


@pytest.mark.parametrize(("family", "variant"), [("llama", "dynamic"), ("phi3", "longrope")])
def test_rows_on_both_sides_of_the_trained_length_have_periods_of_their_own(
    random_model, family, variant
):
    decoder = load(random_model(family, variant), dtype="float32").decoder
    original = decoder.spec.blocks[0].attention.rope.original_length
    total, padding = original + 9, [0, 4, 9, 20]
    ids = np.random.default_rng(0).integers(0, decoder.spec.vocab, (len(padding), total))
    rows = [
        np.array(decoder(mx.array(row[None, n:])))[0] for row, n in zip(ids, padding, strict=True)
    ]
    assert worst(in_pieces(decoder, mx.array(ids), padding, [total]), rows, padding) < 2e-5
    longest = [
        np.array(decoder(mx.array(row[None, n:]), length=total))[0]
        for row, n in zip(ids, padding, strict=True)
    ]
    assert worst(longest, rows, [0] * len(rows)) > 1e-3, "the longest row's periods show"
