"""Kernels of the engine's own beside the product they stand for. They need a CUDA device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.cache import Cache
from engine.kernels import matrix_vector, ragged
from engine.layers.attention import attend, mask_for

on_cuda = pytest.mark.skipif(not mx.cuda.is_available(), reason="MLX has no CUDA device here")


def packed(rows: int, width: int, dtype: mx.Dtype, group: int):
    """A row, a matrix, and the parts it is packed in."""
    mx.random.seed(0)
    x = mx.random.normal((1, 1, width)).astype(dtype)
    matrix = (mx.random.normal((rows, width)) * width**-0.5).astype(dtype)
    return x, *mx.quantize(matrix, group, 4)


def off_by(actual: mx.array, expected: mx.array) -> float:
    difference = np.array(actual.astype(mx.float32)) - np.array(expected.astype(mx.float32))
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.array(expected) ** 2)))


@on_cuda
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(("rows", "width"), [(5000, 4096), (24_000, 1152)])
def test_one_row_times_a_packed_matrix(rows, width, dtype, group):
    x, w, scales, biases = packed(rows, width, dtype, group)
    assert matrix_vector.takes(x, w, scales, "affine", 4, group)
    wide = (part.astype(mx.float32) for part in (scales, biases))
    expected = x.astype(mx.float32) @ mx.dequantize(w, *wide, group, 4).T
    rounding = off_by(expected.astype(dtype), expected)
    assert off_by(matrix_vector.product(x, w, scales, biases, group), expected) < 1.5 * rounding
    assert off_by(matrix_vector.product(x, w, scales, -biases, group), expected) > 0.1


def test_anything_else_is_left_to_mlx():
    x, w, scales, _ = packed(5000, 4096, mx.bfloat16, 64)
    assert matrix_vector.takes(x, w, scales, "affine", 4, 64) == mx.cuda.is_available()
    assert not matrix_vector.takes(mx.repeat(x, 2, axis=1), w, scales, "affine", 4, 64)
    assert not matrix_vector.takes(x, w, scales, "affine", 8, 64)
    assert not matrix_vector.takes(x, w, scales, "mxfp4", 4, 32)
    assert not matrix_vector.takes(x.astype(mx.float32), w, scales, "affine", 4, 64)
    assert not matrix_vector.takes(x, w[:100], scales[:100], "affine", 4, 64)


@on_cuda
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(4, 2, 24), (32, 8, 64), (8, 1, 128), (2, 2, 256)]
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_one_query_a_row_over_rows_that_begin_apart(heads, kv_heads, width, dtype, window):
    q, cache, keys, values = filled(heads, kv_heads, width, dtype, window)
    assert ragged.takes(q, *cache.arrays)
    mask = mask_for(cache, 1, keys.shape[2], window)
    wide = (x.astype(mx.float32) for x in (q, keys, values))
    expected = attend(*wide, width**-0.5, mask)
    rounding = max(off_by(expected.astype(dtype), expected), 3e-7)
    actual = ragged.attend(q, *cache.arrays, cache.spans, width**-0.5)
    assert off_by(actual, expected) < 1.5 * rounding
    shifted = ragged.attend(q, *cache.arrays, cache.spans - mx.array([0, 1]), width**-0.5)
    assert off_by(shifted, expected) > 0.05


def test_rows_that_begin_apart_are_left_to_mlx_elsewhere():
    q, cache, _, _ = filled(4, 2, 16, mx.float32, None)
    assert ragged.takes(q, *cache.arrays) == mx.cuda.is_available()
    assert not ragged.takes(mx.repeat(q, 2, axis=2), *cache.arrays)
    assert not ragged.takes(q[:1], *(x[:1] for x in cache.arrays))
    assert not ragged.takes(q.astype(mx.float16), *cache.arrays)
    assert not ragged.takes(q[..., :10], *(x[..., :10] for x in cache.arrays))


def filled(heads: int, kv_heads: int, width: int, dtype: mx.Dtype, window: int | None):
    """A query a row, a cache that has its key, and the keys and values that a mask is for."""
    mx.random.seed(0)
    cache = Cache(window, [0, 7, 299, 40])

    def some(count: int, tokens: int) -> mx.array:
        return mx.random.normal((4, count, tokens, width)).astype(dtype)

    for tokens in (300, 1, 1):
        keys, values = cache.update(some(kv_heads, tokens), some(kv_heads, tokens))
    return some(heads, 1), cache, keys, values
