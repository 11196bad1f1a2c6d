"""The engine's own kernels beside MLX's: how fast, and how far from the same in wider numbers.

Matrices of the shapes of llama models, packed in 4 bits, times one row, beside the product in
float64. Several take turns, so that none stays in a cache. Then attention of one query a row, each
to the end of what came before it; MLX's with the mask that rows of unequal length need, and with
none. Medians of five runs. Needs a CUDA device. Usage:

    python benchmarks/kernels.py [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from engine.cache import Cache
from engine.kernels import matrix_vector, ragged
from engine.layers.attention import attend, mask_for
from engine.weights.quantised import Packing

GROUP, BITS = 64, 4
SHAPES = (
    (3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192),
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096),
)  # fmt: skip
# Rows, heads, heads of keys, width of a head; of as many tokens each.
ROWS = ((1, 32, 8, 64), (1, 32, 8, 128), (8, 32, 8, 128), (32, 32, 8, 64))
TOKENS = (300, 2000, 8000, 32_000)
LARGEST = 300_000  # tokens in all rows
PACKINGS = {"ours": None, "8 bits": Packing(GROUP, 8), "4 bits": Packing(GROUP, 4)}
CHAIN = 16  # attentions, each of what the last one gave
Product = Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    dtype = getattr(mx, parser.parse_args().dtype)
    if not mx.cuda.is_available():
        sys.exit("kernels: MLX has no CUDA device here")
    mx.random.seed(0)
    print(f"mlx {mx.__version__} on {mx.device_info()['device_name']}, {dtype}")
    _matrices(dtype)
    for shape in ROWS:
        for tokens in TOKENS:
            if shape[0] * tokens <= LARGEST:
                _attention(shape, tokens, dtype)


def _matrices(dtype: mx.Dtype) -> None:
    sides: dict[str, Product] = {"ours": _ours, "mlx": _mlx}
    for rows, width in SHAPES:
        x = mx.random.normal((1, 1, width)).astype(dtype)
        packed = [
            mx.quantize((mx.random.normal((rows, width)) * width**-0.5).astype(dtype), GROUP, BITS)
            for _ in range(max(2, min(6, 300_000_000 // (rows * width))))
        ]
        mx.eval(x, packed)
        figures = {name: _seconds(side, x, packed) for name, side in sides.items()}
        errors = {name: _error(side, x, packed[0]) for name, side in sides.items()}
        ratio = statistics.median(
            m / o for o, m in zip(figures["ours"], figures["mlx"], strict=True)
        )
        print(
            f"  {rows} x {width}: "
            + ", ".join(
                f"{name} {1e6 * statistics.median(figures[name]):.1f} us, off by {errors[name]:.1e}"
                for name in sides
            )
            + f": {ratio:.2f} times as fast",
            flush=True,
        )


def _attention(shape: tuple[int, int, int, int], tokens: int, dtype: mx.Dtype) -> None:
    rows, heads, kv_heads, width = shape
    scale = width**-0.5

    def some(heads: int, tokens: int) -> mx.array:
        return mx.random.normal((rows, heads, tokens, width)).astype(dtype)

    q, past, new = some(heads, 1), [some(kv_heads, tokens) for _ in "kv"], some(kv_heads, 1)
    caches = {name: Cache(None, range(rows), packing) for name, packing in PACKINGS.items()}
    for cache in caches.values():
        cache.update(*past)
    kept = {name: cache.update(new, new) for name, cache in caches.items()}
    figures = {
        name: _chained(_kernel(cache, scale), q, kept[name]) for name, cache in caches.items()
    }
    keys = kept["ours"]
    mask = mask_for(caches["ours"], 1, keys[0].shape[2], None)
    expected = attend(*(x.astype(mx.float32) for x in (q, *keys)), scale, mask)
    error = _off_by(_kernel(caches["ours"], scale)(q), expected)
    masks = {"mlx": mask} if mask is None else {"mlx": mask, "mlx without a mask": None}
    for name, mask in masks.items():
        figures[name] = _chained(lambda x, m=mask: attend(x, *keys, scale, m), q, keys)
    print(
        f"  {rows} rows of {tokens} tokens, {heads} heads of {width}, {kv_heads} of keys: "
        + ", ".join(f"{name} {1e6 * seconds:.1f} us" for name, seconds in figures.items())
        + f"; off by {error:.1e}",
        flush=True,
    )


def _kernel(cache: Cache, scale: float) -> Callable[[mx.array], mx.array]:
    return lambda x: ragged.attend(x, cache.arrays, cache.spans, scale, cache.packing)


def _chained(side: Callable[[mx.array], mx.array], q: mx.array, others: object) -> float:
    """Seconds of one, where each has to wait for the one before it."""
    mx.eval(q, others)

    def chain() -> mx.array:
        x = q
        for _ in range(CHAIN):
            x = side(x)
        return x

    mx.eval(chain())
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(4):
            mx.async_eval(chain())
        mx.synchronize()
        taken.append((time.perf_counter() - begin) / 4 / CHAIN)
    return statistics.median(taken)


def _ours(x: mx.array, w: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
    return matrix_vector.product(x, w, scales, biases, GROUP)


def _mlx(x: mx.array, w: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
    return mx.quantized_matmul(x, w, scales, biases, True, GROUP, BITS)


def _seconds(side: Product, x: mx.array, packed: list) -> list[float]:
    """Of one product, five times."""
    flat = [part for parts in packed for part in parts]

    def several(*flat: mx.array) -> list[mx.array]:
        return [side(x, *flat[i : i + 3]) for i in range(0, len(flat), 3)]  # w, scales, biases

    compiled = mx.compile(several)
    mx.eval(compiled(*flat))
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(10):
            mx.async_eval(compiled(*flat))
        mx.synchronize()
        taken.append((time.perf_counter() - begin) / 10 / len(packed))
    return taken


def _error(side: Product, x: mx.array, parts: tuple[mx.array, ...]) -> float:
    """How far a product is from the same in float64."""
    w, *affine = parts
    scales, biases = (part.astype(mx.float32) for part in affine)
    matrix = np.array(mx.dequantize(w, scales, biases, GROUP, BITS), np.float64)
    return _off_by(side(x, *parts), np.array(x.astype(mx.float32), np.float64) @ matrix.T)


def _off_by(actual: mx.array, expected: mx.array | np.ndarray) -> float:
    """rms of the difference, over the rms of what is expected."""
    expected = np.array(expected, np.float64)
    difference = np.array(actual.astype(mx.float32), np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected**2)))


if __name__ == "__main__":
    main()
