"""One row times a matrix packed in 4 bits, on CUDA. Reference: `mx.quantized_matmul`."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlx.core as mx

from ..runtime import device_name

WARPS = 8  # of a block, 32 lanes each
WIDE = 20_000  # outputs from which four rows a warp are faster than two
LARGE = 20_000_000  # numbers in a matrix from which it is faster than MLX's

# One warp makes R outputs. A lane takes 32 inputs at a time, whose weights are 16 bytes of a row.
# Two of the numbers n between 0 and 15 become bfloat16s 128 + n by one mask, which is exact, and
# float32 by a shift; 128 times the inputs' sum is taken off at the end. Sums are float32.
_MATRIX_VECTOR_4 = """
  const int lane = threadIdx.x & 31;
  const int first = (blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5)) * R;
  if (first >= OUT) return;
  float total[R];
  #pragma unroll
  for (int r = 0; r < R; r++) total[r] = 0.f;
  #pragma unroll 2
  for (int c = lane * 32; c < IN; c += 1024) {
    uint4 packed[R];
    #pragma unroll
    for (int r = 0; r < R; r++)
      packed[r] = *reinterpret_cast<const uint4*>(w + (long)(first + r) * (IN / 8) + c / 8);
    float v[32], sum = 0.f;
    #pragma unroll
    for (int i = 0; i < 4; i++) {
      uint4 eight = *reinterpret_cast<const uint4*>(x + c + 8 * i);
      const T* values = reinterpret_cast<const T*>(&eight);
      #pragma unroll
      for (int j = 0; j < 8; j++) {
        v[8 * i + j] = (float)values[j];
        sum += v[8 * i + j];
      }
    }
    #pragma unroll
    for (int r = 0; r < R; r++) {
      const unsigned* words = reinterpret_cast<const unsigned*>(&packed[r]);
      float product = 0.f;
      #pragma unroll
      for (int i = 0; i < 4; i++) {
        #pragma unroll
        for (int j = 0; j < 4; j++) {
          unsigned two = ((words[i] >> (4 * j)) & 0x000f000fu) | 0x43004300u;
          product += v[8 * i + j] * __uint_as_float(two << 16);
          product += v[8 * i + j + 4] * __uint_as_float(two & 0xffff0000u);
        }
      }
      const long group = (long)(first + r) * (IN / GROUP) + c / GROUP;
      total[r] += (float)scales[group] * (product - 128.f * sum) + (float)biases[group] * sum;
    }
  }
  #pragma unroll
  for (int r = 0; r < R; r++) {
    for (int half = 16; half > 0; half >>= 1)
      total[r] += __shfl_xor_sync(0xffffffffu, total[r], half);
    if (lane == 0) out[first + r] = (T)total[r];
  }
"""


def takes(
    x: mx.array, weight: mx.array, scales: mx.array, mode: str, bits: int, group: int
) -> bool:
    """Whether `product` can compute it, and is the faster, on this device."""
    width = x.shape[-1]
    return (
        x.size == width
        and bits == 4
        and mode == "affine"
        and weight.ndim == 2
        and x.dtype in (mx.bfloat16, mx.float16)
        and scales.dtype == x.dtype
        and group % 32 == 0
        and width % group == 0
        and len(weight) % 4 == 0
        and len(weight) * width >= LARGE
        and device_name() == "cuda"
    )


def product(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, group: int
) -> mx.array:
    """One row (..., in) times W^T, of W (out, in) packed in 4 bits: (..., out)."""
    rows, width = len(weight), x.shape[-1]
    each = 4 if rows >= WIDE else 2
    blocks = -(-rows // (each * WARPS))
    return _kernel()(
        inputs=[x, weight, scales, biases],
        template=[("T", x.dtype), ("OUT", rows), ("IN", width), ("GROUP", group), ("R", each)],
        grid=(blocks * WARPS * 32, 1, 1),
        threadgroup=(WARPS * 32, 1, 1),
        output_shapes=[(*x.shape[:-1], rows)],
        output_dtypes=[x.dtype],
    )[0]


@cache
def _kernel() -> Any:
    return mx.fast.cuda_kernel(
        name="matrix_vector_4",
        input_names=["x", "w", "scales", "biases"],
        output_names=["out"],
        source=_MATRIX_VECTOR_4,
    )
