"""The engine's own kernels beside MLX's: how fast, and how far from the same product in float64.

Matrices of the shapes of llama models, packed in 4 bits, times one row. Several take turns, so that
none stays in a cache; medians of five runs. Needs a CUDA device. Usage:

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

from engine.kernels import matrix_vector

GROUP, BITS = 64, 4
SHAPES = (
    (3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192),
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096),
)  # fmt: skip
Product = Callable[[mx.array, mx.array, mx.array, mx.array], mx.array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    dtype = getattr(mx, parser.parse_args().dtype)
    if not mx.cuda.is_available():
        sys.exit("kernels: MLX has no CUDA device here")
    mx.random.seed(0)
    print(f"mlx {mx.__version__} on {mx.device_info()['device_name']}, {dtype}")
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
    """rms of the difference from float64, over the rms of that."""
    actual = np.array(side(x, *parts).astype(mx.float32), np.float64)
    w, *affine = parts
    scales, biases = (part.astype(mx.float32) for part in affine)
    matrix = np.array(mx.dequantize(w, scales, biases, GROUP, BITS), np.float64)
    expected = np.array(x.astype(mx.float32), np.float64) @ matrix.T
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


if __name__ == "__main__":
    main()
