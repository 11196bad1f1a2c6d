"""Attention of one query a row, over rows that begin at different places of a buffer, on CUDA.

Reference: `attend` of layers/attention.py with a mask, for which MLX has no fused kernel there, and
`attend_packed` for keys and values in fewer bits, for which it has no product. For many rows that
begin together, and for long ones, its own is slower as well.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx

from ..runtime import device_name
from ..weights.quantised import Packing

WARPS = 8  # of a block, 32 lanes each
WIDEST = 256  # head: a warp holds a key
SHARED = 48_000  # bytes that a block's warps may leave for each other
BLOCKS = 256  # that keep a device busy
SHARE = 256  # keys of a row that are worth a block of their own
LONG = 8192  # keys from which MLX's own kernel is slower, of one sequence that is not packed

# A block has one row, one head of keys with the G heads of queries that share it, and a share of
# the keys. L lanes, a power of two, have one key, 8 numbers each or none, so that a warp looks at
# 32 / L keys at once; each such place keeps its own largest logit, sum and weighted values, which
# are brought together at the end. All sums are float32. Logits begin at a number instead of -inf: a
# place without keys has no weight either way.
_SOURCE = """
  constexpr int PLACES = WARPS * 32 / L;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int part = lane % L, place = threadIdx.x / L;
  const bool holds = 8 * part < D;
  auto power = [](float x) { return sizeof(T) == 4 ? expf(x) : __expf(x); };
  const long pair = blockIdx.x;
  const int row = pair / keys_shape[1], share = blockIdx.y;
  const int begin = spans[2 * row], count = spans[2 * row + 1] - begin;
  const int each = (count + gridDim.y - 1) / gridDim.y;
  const int first = begin + min(count, each * share), end = begin + min(count, each * (share + 1));
  float query[G][8], best[G], sum[G], total[G][8];
  #pragma unroll
  for (int g = 0; g < G; g++) {
    best[g] = -1e30f;
    sum[g] = 0.f;
    #pragma unroll
    for (int j = 0; j < 8; j++) query[g][j] = total[g][j] = 0.f;
    if (holds) eight(q + (pair * G + g) * D + 8 * part, query[g]);
    #pragma unroll
    for (int j = 0; j < 8; j++) query[g][j] *= SCALE;
  }
  #pragma unroll 2
  for (int at = first; at < end; at += PLACES) {
    const bool real = at + place < end;
    const long token = pair * keys_shape[2] + (real ? at + place : first);
    float key[8] = {}, value[8] = {};
    if (holds) {
      READ(key, keys)
      READ(value, values)
    }
    #pragma unroll
    for (int g = 0; g < G; g++) {
      float logit = 0.f;
      #pragma unroll
      for (int j = 0; j < 8; j++) logit += query[g][j] * key[j];
      #pragma unroll
      for (int half = L / 2; half > 0; half >>= 1)
        logit += __shfl_xor_sync(0xffffffffu, logit, half);
      const float top = real ? fmaxf(best[g], logit) : best[g];
      const float old = power(best[g] - top), weight = real ? power(logit - top) : 0.f;
      best[g] = top;
      sum[g] = sum[g] * old + weight;
      #pragma unroll
      for (int j = 0; j < 8; j++) total[g][j] = total[g][j] * old + weight * value[j];
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
    const int g = i / D, d = i % D;
    float top = -1e30f, whole = 0.f, y = 0.f;
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w][g]);
    for (int w = 0; w < WARPS; w++) {
      const float weight = power(tops[w][g] - top);
      whole += weight * sums[w][g];
      y += weight * totals[w][g][d];
    }
    if (SHARES) {
      const long to = ((pair * G + g) * gridDim.y + share) * (D + 2);
      out[to + d] = y;
      if (d == 0) { out[to + D] = top; out[to + D + 1] = whole; }
    } else {
      out[pair * G * D + i] = (O)(y / whole);
    }
  }
"""

# What the blocks of one head's shares made, as one: a thread for each number.
_MERGE = """
  const long head = blockIdx.x;
  const int d = threadIdx.x, count = shares_shape[2];
  const float* mine = shares + head * count * (D + 2);
  float top = -1e30f, whole = 0.f, y = 0.f;
  for (int s = 0; s < count; s++) top = fmaxf(top, mine[s * (D + 2) + D]);
  for (int s = 0; s < count; s++) {
    const float weight = expf(mine[s * (D + 2) + D] - top);
    whole += weight * mine[s * (D + 2) + D + 1];
    y += weight * mine[s * (D + 2) + d];
  }
  out[head * D + d] = (T)(y / whole);
"""

_HEADER = """
constexpr float SCALE = {scale:.9e}f;

template <typename T>
__device__ void eight(const T* from, float (&x)[8]) {{
  struct __align__(16) Eight {{ T of[8]; }};
  const Eight numbers = *reinterpret_cast<const Eight*>(from);
  #pragma unroll
  for (int j = 0; j < 8; j++) x[j] = (float)numbers.of[j];
}}

template <int BITS, typename T>
__device__ void eight_packed(const unsigned* words, const T scale, const T bias, float (&x)[8]) {{
  unsigned codes[BITS / 4];
  #pragma unroll
  for (int i = 0; i < BITS / 4; i++) codes[i] = words[i];
  #pragma unroll
  for (int j = 0; j < 8; j++) {{
    const unsigned code = (codes[j * BITS / 32] >> (j * BITS % 32)) & ((1u << BITS) - 1);
    x[j] = (float)scale * (float)code + (float)bias;
  }}
}}

#define PLAIN(x, name) eight(name + token * D + 8 * part, x);
#define PACKED(x, name) {{                                                       \\
    const long group = token * (D / GROUP) + 8 * part / GROUP;                  \\
    eight_packed<BITS>(name + token * (D * BITS / 32) + part * BITS / 4,        \\
                       name##_scales[group], name##_biases[group], x);          \\
  }}
"""
_PARTS = ("", "_scales", "_biases")


def takes(q: mx.array, k: mx.array, v: mx.array, seen: int, packing: Packing | None = None) -> bool:
    """Whether `attend` can do it, and is the fastest, on this device.

    For queries (B, H, 1, D) that see so many keys and values (B, K, ..., D), which are kept packed
    or as they are.
    """
    B, H, T, D = q.shape
    K = k.shape[1]
    if packing is None:
        kept = B > 1 or seen >= LONG
    else:
        kept = packing.mode == "affine" and packing.bits in (4, 8) and packing.fits(D)
    return (
        kept
        and T == 1
        and k.shape[-1] == v.shape[-1] == D
        and k.dtype == v.dtype == q.dtype
        and D % 8 == 0
        and D <= WIDEST
        and WARPS * (H // K) * (D + 2) * 4 <= SHARED
        and device_name() == "cuda"
    )


def attend(
    q: mx.array,
    buffers: Sequence[mx.array],
    spans: mx.array,
    scale: float,
    packing: Packing | None = None,
) -> mx.array:
    """softmax(scale * q k^T) v, (B, H, 1, D), of each row's keys and values.

    Those are in buffers (B, K, room, D), or packed in the parts of both, from the first number of
    the row's span (B, 2), of int32, to the second.
    """
    B, H, _, D = q.shape
    _, K, room, _ = buffers[0].shape
    shares = max(1, min(BLOCKS // (B * K), room // SHARE))
    numbers = {"D": D, "L": 1 << (D // 8 - 1).bit_length(), "G": H // K, "WARPS": WARPS}
    if packing is not None:
        numbers |= {"BITS": packing.bits, "GROUP": packing.group_size}
    alone = shares == 1
    dtype, shape = (q.dtype, q.shape) if alone else (mx.float32, (B, H, shares, D + 2))
    made = _kernel(scale, packing is not None)(
        inputs=[q, *buffers, spans],
        template=[
            ("T", q.dtype),
            ("O", dtype),
            ("SHARES", not alone),
            *numbers.items(),
        ],
        grid=(B * K * WARPS * 32, shares, 1),
        threadgroup=(WARPS * 32, 1, 1),
        output_shapes=[shape],
        output_dtypes=[dtype],
    )[0]
    if alone:
        return made
    return _merge()(
        inputs=[made],
        template=[("T", q.dtype), ("D", D)],
        grid=(B * H * D, 1, 1),
        threadgroup=(D, 1, 1),
        output_shapes=[q.shape],
        output_dtypes=[q.dtype],
    )[0]


@cache
def _kernel(scale: float, packed: bool) -> Any:
    kept = [
        name + part for name in ("keys", "values") for part in (_PARTS if packed else _PARTS[:1])
    ]
    number, kind = struct.pack(">f", scale).hex(), "PACKED" if packed else "PLAIN"
    return mx.fast.cuda_kernel(
        name=f"ragged_attention_{kind.lower()}_{number}",
        input_names=["q", *kept, "spans"],
        output_names=["out"],
        header=_HEADER.format(scale=scale),
        source=_SOURCE.replace("READ", kind),
    )


@cache
def _merge() -> Any:
    return mx.fast.cuda_kernel(
        name="ragged_attention_merge", input_names=["shares"], output_names=["out"], source=_MERGE
    )
