"""Attention of one query a row, over rows that begin at different places of one buffer, on CUDA.

Reference: `attend` of layers/attention.py with a mask, for which MLX has no fused kernel there; of
rows that begin together its own is slower as well, except for few and short ones.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import mlx.core as mx

WARPS = 8  # of a block, 32 lanes each
WIDEST = 256  # head: a warp holds a key
SHARED = 48_000  # bytes that a block's warps may leave for each other
SHORT = 2048  # keys up to which it is fast however few blocks there are,
BLOCKS = 64  # and how many blocks give the device enough to do with more

# A block is one row and one head of keys, with the G heads of queries that share it. L lanes, a
# power of two, have one key, 8 numbers each or none, so that a warp looks at 32 / L keys at once;
# each such place keeps its own largest logit, sum and weighted values, which are brought together
# at the end. All sums are float32. Logits begin at a number instead of -inf: a place without keys
# has no weight either way.
_SOURCE = """
  struct __align__(16) Eight { T of[8]; };
  constexpr int PLACES = WARPS * 32 / L;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int part = lane % L, place = threadIdx.x / L;
  const bool holds = 8 * part < D;
  auto power = [](float x) { return sizeof(T) == 4 ? expf(x) : __expf(x); };
  const long pair = blockIdx.x;
  const int row = pair / keys_shape[1];
  const int first = spans[2 * row], end = spans[2 * row + 1];
  float query[G][8], best[G], sum[G], total[G][8];
  #pragma unroll
  for (int g = 0; g < G; g++) {
    Eight q8 = {};
    if (holds) q8 = *reinterpret_cast<const Eight*>(q + (pair * G + g) * D + 8 * part);
    best[g] = -1e30f;
    sum[g] = 0.f;
    #pragma unroll
    for (int j = 0; j < 8; j++) {
      query[g][j] = SCALE * (float)q8.of[j];
      total[g][j] = 0.f;
    }
  }
  const long start = pair * keys_shape[2] * D + 8 * part;
  #pragma unroll 2
  for (int at = first; at < end; at += PLACES) {
    const bool real = at + place < end;
    const long from = start + (long)(real ? at + place : first) * D;
    Eight k8 = {}, v8 = {};
    if (holds) {
      k8 = *reinterpret_cast<const Eight*>(keys + from);
      v8 = *reinterpret_cast<const Eight*>(values + from);
    }
    #pragma unroll
    for (int g = 0; g < G; g++) {
      float logit = 0.f;
      #pragma unroll
      for (int j = 0; j < 8; j++) logit += query[g][j] * (float)k8.of[j];
      #pragma unroll
      for (int half = L / 2; half > 0; half >>= 1)
        logit += __shfl_xor_sync(0xffffffffu, logit, half);
      const float top = real ? fmaxf(best[g], logit) : best[g];
      const float old = power(best[g] - top), weight = real ? power(logit - top) : 0.f;
      best[g] = top;
      sum[g] = sum[g] * old + weight;
      #pragma unroll
      for (int j = 0; j < 8; j++) total[g][j] = total[g][j] * old + weight * (float)v8.of[j];
    }
  }
  __shared__ float tops[WARPS][G], sums[WARPS][G], totals[WARPS][G][D];
  #pragma unroll
  for (int g = 0; g < G; g++) {
    #pragma unroll
    for (int step = L; step < 32; step <<= 1) {
      const float other = __shfl_xor_sync(0xffffffffu, best[g], step);
      const float top = fmaxf(best[g], other);
      const float mine = power(best[g] - top), theirs = power(other - top);
      best[g] = top;
      sum[g] = sum[g] * mine + __shfl_xor_sync(0xffffffffu, sum[g], step) * theirs;
      #pragma unroll
      for (int j = 0; j < 8; j++)
        total[g][j] = total[g][j] * mine
          + __shfl_xor_sync(0xffffffffu, total[g][j], step) * theirs;
    }
    if (lane < L && holds) {
      #pragma unroll
      for (int j = 0; j < 8; j++) totals[warp][g][8 * part + j] = total[g][j];
      if (lane == 0) { tops[warp][g] = best[g]; sums[warp][g] = sum[g]; }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < G * D; i += WARPS * 32) {
    const int g = i / D;
    float top = -1e30f, whole = 0.f, y = 0.f;
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w][g]);
    for (int w = 0; w < WARPS; w++) {
      const float share = power(tops[w][g] - top);
      whole += share * sums[w][g];
      y += share * totals[w][g][i % D];
    }
    out[pair * G * D + i] = (T)(y / whole);
  }
"""


def takes(q: mx.array, keys: mx.array, values: mx.array) -> bool:
    """Whether `attend` can do it, and is the faster, on this device.

    Queries (B, H, 1, D), and keys and values (B, K, S, D): what is seen, or the buffers of it.
    """
    B, H, T, D = q.shape
    K = keys.shape[1]
    return (
        T == 1
        and B > 1  # else MLX's own is fused too, and shares one sequence among blocks
        and D % 8 == 0
        and D <= WIDEST
        and values.shape[-1] == D
        and WARPS * (H // K) * (D + 2) * 4 <= SHARED
        and (keys.shape[2] <= SHORT or B * K >= BLOCKS)
        and keys.dtype == values.dtype == q.dtype
        and mx.default_device().type == mx.gpu
        and mx.cuda.is_available()
    )


def attend(
    q: mx.array, keys: mx.array, values: mx.array, spans: mx.array, scale: float
) -> mx.array:
    """softmax(scale * q k^T) v, (B, H, 1, D), of each row's keys and values.

    Those are in buffers (B, K, room, D), from the first number of the row's span (B, 2), of int32,
    to the second.
    """
    B, H, _, D = q.shape
    K, lanes = keys.shape[1], 1 << (D // 8 - 1).bit_length()
    return _kernel(scale)(
        inputs=[q, keys, values, spans],
        template=[("T", q.dtype), ("D", D), ("L", lanes), ("G", H // K), ("WARPS", WARPS)],
        grid=(B * K * WARPS * 32, 1, 1),
        threadgroup=(WARPS * 32, 1, 1),
        output_shapes=[q.shape],
        output_dtypes=[q.dtype],
    )[0]


@cache
def _kernel(scale: float) -> Any:
    number = struct.pack(">f", scale).hex()
    return mx.fast.cuda_kernel(
        name=f"ragged_attention_{number}",
        input_names=["q", "keys", "values", "spans"],
        output_names=["out"],
        header=f"constexpr float SCALE = {scale:.9e}f;\n",
        source=_SOURCE,
    )
