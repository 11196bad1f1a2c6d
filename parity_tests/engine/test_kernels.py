"""Kernels of the engine's own beside the product they stand for. They need a CUDA device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.cache import Cache
from engine.kernels import matrix_vector, ragged
from engine.layers.attention import attend, mask_for
from engine.weights.quantised import Packing

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
@pytest.mark.parametrize("tokens", [300, 3000])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 24), (32, 8, 64), (2, 2, 256)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_one_query_a_row_over_rows_that_begin_apart(heads, kv_heads, width, dtype, tokens, window):
    check_ragged(*filled(heads, kv_heads, width, dtype, tokens, window))


@on_cuda
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("tokens", [300, 3000])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("packing", [None, Packing(32, 8), Packing(64, 4)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_one_query_a_row_over_keys_and_values_however_they_are_kept(
    rows, packing, width, dtype, tokens
):
    check_ragged(*filled(8, 2, width, dtype, tokens, None, packing, rows))


def check_ragged(q: mx.array, cache: Cache, keys: mx.array, values: mx.array):
    """The kernel beside the product that a mask is for, in float32."""
    width = q.shape[-1]
    assert ragged.takes(q, keys, values, ragged.LONG, cache.packing)
    mask = mask_for(cache, 1, keys.shape[2], cache.window)
    wide = (x.astype(mx.float32) for x in (q, keys, values))
    expected = attend(*wide, width**-0.5, mask)
    # Keys that were packed are rounded to their dtype before they are compared with.
    rounding = max(off_by(expected.astype(q.dtype), expected), 3e-7)
    limit = (1.5 if cache.packing is None else 3) * rounding
    how = width**-0.5, cache.packing
    assert off_by(ragged.attend(q, cache.arrays, cache.spans, *how), expected) < limit
    begin, end = cache.spans.T
    halves = mx.stack([begin, end - (end - begin) // 2], axis=1)
    assert off_by(ragged.attend(q, cache.arrays, halves, *how), expected) > 3 * limit


def test_rows_that_begin_apart_are_left_to_mlx_elsewhere():
    q, _, k, v = filled(4, 2, 24, mx.float32, 300, None)
    assert ragged.takes(q, k, v, 302) == mx.cuda.is_available()
    assert not ragged.takes(mx.repeat(q, 2, axis=2), k, v, 302)
    assert not ragged.takes(q[:1], k[:1], v[:1], 302)
    assert not ragged.takes(q.astype(mx.float16), k, v, 302)
    assert not ragged.takes(q[..., :10], k[..., :10], v[..., :10], 302)


def filled(
    heads: int,
    kv_heads: int,
    width: int,
    dtype: mx.Dtype,
    tokens: int,
    window: int | None,
    packing: Packing | None = None,
    rows: int = 4,
):
    """A query a row, a cache that has its key, and the keys and values that a mask is for."""
    mx.random.seed(0)
    cache = Cache(window, [0, 7, 299, 40][:rows], packing)

    def some(count: int, tokens: int) -> mx.array:
        return mx.random.normal((rows, count, tokens, width)).astype(dtype)

    for count in (tokens, 1, 1):
        keys, values = cache.update(some(kv_heads, count), some(kv_heads, count))
    return some(heads, 1), cache, keys, values
