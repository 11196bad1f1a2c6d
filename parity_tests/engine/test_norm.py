"""Norms against their formulas in float64: both kinds, every offset, with rows and without."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.layers.norm import Norm
from engine.spec import NormSpec

TOKENS, ROWS, WIDTH = 5, 3, 16
EPS = 3e-3  # large enough to matter to the small inputs below


def formula(x, weight, bias, spec: NormSpec) -> np.ndarray:
    """The definition, in float64."""
    x = x.astype(np.float64)
    if spec.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + spec.eps)
    return y * (spec.offset + weight) + (0.0 if bias is None else bias)


def filled(spec: NormSpec, rows: int | None = None, seed: int = 0) -> tuple[Norm, np.ndarray]:
    """A norm with random parameters, and an input (1, T, [rows,] width) away from zero mean."""
    random = np.random.default_rng(seed)
    norm = Norm(spec, WIDTH, rows)
    shape = tuple(norm.weight.shape)
    norm.weight = mx.array(random.uniform(0.4, 1.6, shape).astype(np.float32))
    if spec.bias:
        norm.bias = mx.array(random.normal(0, 0.5, shape).astype(np.float32))
    x = random.normal(0.3, 0.1, (1, TOKENS, *shape)).astype(np.float32)
    return norm, x


def error(norm: Norm, x: np.ndarray, spec: NormSpec) -> float:
    """Relative to what the formula gives with the norm's own parameters."""
    bias = None if "bias" not in norm else np.array(norm.bias)
    expected = formula(x, np.array(norm.weight), bias, spec)
    actual = np.array(norm(mx.array(x)))
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


SPECS = [
    NormSpec(kind, EPS, offset, bias)
    for kind, bias in (("rms", False), ("layer", False), ("layer", True))
    for offset in (0.0, 1.0)
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("rows", [None, ROWS])
def test_a_norm_is_its_formula(spec, rows):
    norm, x = filled(spec, rows)
    assert error(norm, x, spec) < 2e-6


@pytest.mark.parametrize("rows", [None, ROWS])
@pytest.mark.parametrize(
    "other",
    [
        NormSpec("rms", EPS, 1.0, True),
        NormSpec("layer", EPS / 10, 1.0, True),
        NormSpec("layer", EPS, 0.0, True),
    ],
    ids=str,
)
def test_the_formula_of_another_norm_is_told_apart(other, rows):
    norm, x = filled(NormSpec("layer", EPS, 1.0, True), rows)
    assert error(norm, x, other) > 1e-2


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_each_row_has_its_own_gain(spec):
    norm, x = filled(spec, ROWS)
    whole = np.array(norm(mx.array(x)))
    for row in range(ROWS):
        one = Norm(spec, WIDTH)
        one.weight = norm.weight[row]
        if spec.bias:
            one.bias = norm.bias[row]
        assert np.allclose(whole[..., row, :], one(mx.array(x[..., row, :])), rtol=1e-5, atol=1e-6)
        other = (row + 1) % ROWS
        assert not np.allclose(whole[..., other, :], one(mx.array(x[..., other, :])), atol=1e-2)


WITH_OFFSET = [spec for spec in SPECS if spec.offset]


@pytest.mark.parametrize("spec", WITH_OFFSET, ids=str)
@pytest.mark.parametrize("rows", [None, ROWS])
def test_a_gain_of_one_plus_w_is_not_rounded(spec, rows):
    """In bfloat16 all that is left is rounding of the result, which 1 + w in bfloat16 goes past."""
    norm, x = filled(spec, rows)
    norm.set_dtype(mx.bfloat16)
    low = mx.array(x).astype(mx.bfloat16)
    actual = norm(low)
    assert actual.dtype == mx.bfloat16
    x, actual = (np.array(array.astype(mx.float32)) for array in (low, actual))
    weight = np.array(norm.weight.astype(mx.float32))
    bias = np.array(norm.bias.astype(mx.float32)) if spec.bias else None
    rounded = np.array((1 + norm.weight).astype(mx.float32)) - 1

    def once_rounded(weight: np.ndarray) -> bool:
        expected = formula(x, weight, bias, spec)
        return bool((np.abs(actual - expected) <= 2.0**-8 * np.abs(expected) + 1e-5).all())

    assert once_rounded(weight)
    assert not once_rounded(rounded)


def test_only_what_has_a_bias_has_one():
    assert set(Norm(NormSpec("layer", EPS), WIDTH).parameters()) == {"weight"}
    both = Norm(NormSpec("layer", EPS, bias=True), WIDTH, ROWS).parameters()
    assert {name: tuple(array.shape) for name, array in both.items()} == {
        "weight": (ROWS, WIDTH),
        "bias": (ROWS, WIDTH),
    }
