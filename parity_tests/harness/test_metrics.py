"""Errors as numbers: scale-free, never finite for what is not, floored at half a roundoff."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harness.metrics import (
    first_bad_token,
    kl,
    log_likelihood,
    margins,
    relative_error,
    softmax,
)
from harness.reference import rounded

values = arrays(np.float64, (5, 4), elements=st.floats(-100, 100).filter(lambda x: abs(x) > 1e-3))


@given(values, st.floats(1e-6, 1e6))
def test_relative_error_does_not_know_the_scale(expected, scale):
    actual = expected * 1.01
    assert np.isclose(relative_error(actual, expected), 0.01)
    assert np.isclose(relative_error(actual * scale, expected * scale), 0.01)


@given(values)
def test_equal_is_zero_and_anything_odd_is_infinite(expected):
    assert relative_error(expected, expected) == 0
    assert relative_error(expected[:, :3], expected) == np.inf
    for odd in (np.nan, np.inf):
        actual = expected.copy()
        actual[2, 1] = odd
        assert relative_error(actual, expected) == np.inf


def test_nothing_against_something_is_infinite():
    assert relative_error(np.ones((2, 2)), np.zeros((2, 2))) == np.inf


@given(st.integers(0, 4))
def test_the_first_bad_token_is_the_first(row):
    expected = np.ones((5, 4))
    actual = expected.copy()
    actual[row:] += 1e-3
    assert first_bad_token(actual, expected, 1e-7, 6.0) == row
    assert first_bad_token(expected, expected, 1e-7, 6.0) is None


def test_margins():
    assert margins(np.array([[1.0, 5.0, 3.0], [2.0, 2.0, 0.0]])).tolist() == [2.0, 0.0]


@given(arrays(np.float64, 8, elements=st.floats(-1e4, 1e4)))
def test_rounding_is_to_the_nearest_value_of_the_dtype(x):
    import ml_dtypes

    for dtype, kind in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        single = x.astype(np.float32)
        assert np.array_equal(rounded(x, dtype), single.astype(kind).astype(np.float32))
    assert np.array_equal(rounded(x, "float32"), x.astype(np.float32))


@given(arrays(np.float64, (3, 7), elements=st.floats(-5, 5)), st.floats(1e-12, 3.0))
def test_divergence_is_right_where_logarithms_would_cancel(expected, size):
    """Against the textbook sum at large differences, against half a variance at small ones."""
    change = np.random.default_rng(0).standard_normal(expected.shape) * size
    found = kl(expected + change, expected)
    p, q = softmax(expected), softmax(expected + change)
    if size > 1e-2:
        assert np.allclose(found, (p * np.log(p / q)).sum(1), rtol=1e-6, atol=1e-15)
    else:
        mean = (p * change).sum(1, keepdims=True)
        assert np.allclose(found, (p * (change - mean) ** 2).sum(1) / 2, rtol=0.1)
    assert (found >= 0).all()


def test_divergence_of_equals_is_zero_and_of_a_shift_too():
    logits = np.random.default_rng(0).standard_normal((4, 9))
    assert (kl(logits, logits) == 0).all()
    assert np.allclose(kl(logits + 3.0, logits), 0, atol=1e-15)


def test_log_likelihood_of_certainty_is_zero():
    logits = np.full((3, 4), -1e3)
    logits[[0, 1], [2, 3]] = 0.0
    assert log_likelihood(logits, [2, 3]) == 0.0
    assert log_likelihood(logits, [1, 3]) < -400
