"""Kernels of the engine's own beside the product they stand for. They need a CUDA device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine import kernels

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
    assert kernels.takes(x, w, scales, "affine", 4, group)
    wide = (part.astype(mx.float32) for part in (scales, biases))
    expected = x.astype(mx.float32) @ mx.dequantize(w, *wide, group, 4).T
    rounding = off_by(expected.astype(dtype), expected)
    assert off_by(kernels.matrix_vector(x, w, scales, biases, group), expected) < 1.5 * rounding
    assert off_by(kernels.matrix_vector(x, w, scales, -biases, group), expected) > 0.1


def test_anything_else_is_left_to_mlx():
    x, w, scales, _ = packed(5000, 4096, mx.bfloat16, 64)
    assert kernels.takes(x, w, scales, "affine", 4, 64) == mx.cuda.is_available()
    assert not kernels.takes(mx.repeat(x, 2, axis=1), w, scales, "affine", 4, 64)
    assert not kernels.takes(x, w, scales, "affine", 8, 64)
    assert not kernels.takes(x, w, scales, "mxfp4", 4, 32)
    assert not kernels.takes(x.astype(mx.float32), w, scales, "affine", 4, 64)
    assert not kernels.takes(x, w[:100], scales[:100], "affine", 4, 64)
