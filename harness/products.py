"""How rounding grows with the length of a sum, measured in products of matrices.

Limits are measured on small models. PyTorch sums long products in blocks, so that its error hardly
grows with their length; other libraries sum in plain order, and theirs grows with its root. Where a
model's products are longer than those of calibration, both growths are measured, here and now, and
limits are as many times wider. docs/METHOD.md, "Long sums", has the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import ml_dtypes  # noqa: F401  so that numpy knows bfloat16
import numpy as np

from .metrics import relative_error

SHORT = 128  # terms, as in the models that limits are measured on
NEAR = 256  # up to here nothing is widened
ROWS, COLUMNS = 16, 64
Product = Callable[[np.ndarray, np.ndarray, str], np.ndarray]


@cache
def growth(sums: str, length: int, dtype: str) -> float:
    """The error of products of `length` terms over that of SHORT ones; 1 up to NEAR.

    `sums` says who adds: "mlx" on its default device, "torch" on the CPU, else "plain", one term
    after the other in float32.
    """
    if length <= NEAR:
        return 1.0
    product = PRODUCTS.get(sums, plain)
    return max(1.0, _error(product, length, dtype) / _error(product, SHORT, dtype))


def _error(product: Product, length: int, dtype: str) -> float:
    random = np.random.default_rng(length)
    x, w = (random.standard_normal((n, length)).astype(dtype) for n in (ROWS, COLUMNS))
    expected = x.astype(np.float64) @ w.astype(np.float64).T
    return relative_error(product(x, w, dtype).astype(np.float64), expected)


def plain(x: np.ndarray, w: np.ndarray, dtype: str) -> np.ndarray:
    """Products added up in order, the worst that is sensible."""
    terms = x.astype(np.float32)[:, None] * w.astype(np.float32)[None]
    return np.cumsum(terms, axis=-1, dtype=np.float32)[..., -1].astype(dtype)


def in_mlx(x: np.ndarray, w: np.ndarray, dtype: str) -> np.ndarray:
    """On MLX's default device."""
    import mlx.core as mx

    from engine.model import DTYPES

    a, b = (mx.array(each.astype(np.float32)).astype(DTYPES[dtype]) for each in (x, w))
    return np.array((a @ b.T).astype(mx.float32))


def in_torch(x: np.ndarray, w: np.ndarray, dtype: str) -> np.ndarray:
    """On the CPU."""
    import torch

    a, b = (torch.from_numpy(each.astype(np.float32)) for each in (x, w))
    a, b = (each.to(getattr(torch, dtype)) for each in (a, b))
    return (a @ b.T).float().numpy()


PRODUCTS: dict[str, Product] = {"mlx": in_mlx, "torch": in_torch}
