"""Modules whose matrix stays packed: a linear layer, an embedding, the matrices of experts.

Each stands in the decoder where the plain one would, and multiplies by the packed numbers. What is
done where MLX's CPU kernels fall short is done here, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from ..kernels import matrix_vector
from ..runtime import device_name
from ..weights.quantised import Packing


def pack(decoder: nn.Module, places: Mapping[str, Packing], dtype: mx.Dtype) -> None:
    """Put packed modules, empty yet, where `places` says: path of a module -> how it is packed.

    `dtype` is that of the model: packed rows of an embedding have none.
    """
    for path, packing in places.items():
        parent, name = _at(decoder, path)
        plain = parent[name]
        if isinstance(plain, nn.Embedding):
            parent[name] = PackedEmbedding(plain.weight.shape, packing, dtype)
        elif isinstance(plain, nn.Linear):
            parent[name] = PackedLinear(plain.weight.shape, packing, "bias" in plain)
        else:
            parent[name] = PackedExperts(plain.shape, packing)


class PackedLinear(nn.Module):
    """x W^T + b with W (out, in) packed."""

    def __init__(self, shape: tuple[int, ...], packing: Packing, bias: bool = False) -> None:
        super().__init__()
        self.packing = packing
        _fill(self, shape)
        if bias:
            self.bias = mx.zeros(shape[:1])

    def __call__(self, x: mx.array) -> mx.array:
        """(..., in) -> (..., out)"""
        y = _product(x, self)
        return y + self.bias if "bias" in self else y


class PackedEmbedding(nn.Module):
    """Rows of W (V, C) packed, in `dtype`; and x W^T where the head is tied to it."""

    def __init__(self, shape: tuple[int, ...], packing: Packing, dtype: mx.Dtype) -> None:
        super().__init__()
        self.packing, self._dtype = packing, dtype
        _fill(self, shape)

    def __call__(self, tokens: mx.array) -> mx.array:
        """(B, T) -> (B, T, C), rounded once."""
        rows = {part: self[part][tokens] for part in self.packing.parts}
        return self.packing.unpack(rows).astype(self._dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """(..., C) -> (..., V)"""
        return _product(x, self)


class PackedExperts(nn.Module):
    """One matrix of every expert, (E, out, in) packed."""

    def __init__(self, shape: tuple[int, ...], packing: Packing) -> None:
        super().__init__()
        self.packing = packing
        _fill(self, shape)

    def __call__(self, x: mx.array, experts: mx.array, in_order: bool) -> mx.array:
        """Row n of (N, 1, in) times the matrix of expert n -> (N, 1, out)."""
        return _multiply(mx.gather_qmm, x, self, rhs_indices=experts, sorted_indices=in_order)


def _fill(module: Any, shape: tuple[int, ...]) -> None:
    """Give a module the parts of a matrix of this shape, to be replaced by a checkpoint's."""
    packing, (*rows, width) = module.packing, shape
    groups = (*rows, width // packing.group_size)
    module.weight = mx.zeros((*rows, width * packing.bits // 32), mx.uint32)
    for part in packing.parts[1:]:
        module[part] = mx.zeros(groups, mx.float32 if packing.mode == "affine" else mx.uint8)


def _product(x: mx.array, module: Any) -> mx.array:
    """x times the transposed matrix (out, in)."""
    how = module.packing
    if matrix_vector.takes(x, module.weight, module.scales, how.mode, how.bits, how.group_size):
        parts = module.weight, module.scales, module.biases
        return matrix_vector.product(x, *parts, how.group_size)
    return _multiply(mx.quantized_matmul, x, module)


def _multiply(product: Any, x: mx.array, module: Any, **more: Any) -> mx.array:
    """x times the transposed matrix, in the dtype of x.

    MLX's CPU kernels add up in the dtype of x: at bfloat16 seven times the error of a product that
    is rounded once, with 128 terms, and more with more. float32 there costs no copy of the matrix.
    """
    wide = x.astype(mx.float32) if device_name() == "cpu" else x
    settings = module.packing.settings
    parts = module.weight, module.scales, module.get("biases")
    return product(wide, *parts, transpose=True, **settings, **more).astype(x.dtype)


def _at(decoder: nn.Module, path: str) -> tuple[Any, str]:
    """What holds the module at a path, and the module's name there."""
    *steps, name = path.split(".")
    parent: Any = decoder
    for step in steps:
        parent = parent[int(step)] if step.isdigit() else parent[step]
    return parent, name
