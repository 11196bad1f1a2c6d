"""What MLX's attention does with one query and a slice of a key/value buffer, on this device.

Two things are looked at, at 16 bits: whether a slice that does not begin at the buffer's start is
computed rightly, as the last keys of a window are; and whether the same numbers come out when only
what was allocated before differs. For buffers with room for a multiple of 256 tokens, and for those
that `engine/cache.py` makes. Usage:

    python benchmarks/decode_attention.py [--dtype bfloat16]
"""

from __future__ import annotations

import argparse

import mlx.core as mx

from engine.cache import SPARE, STEP
from engine.runtime import device_name

H, K, D = 16, 8, 64
SCALE = D**-0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    dtype = getattr(mx, parser.parse_args().dtype)
    mx.random.seed(0)
    print(f"mlx {mx.__version__} on {device_name()}, {dtype}")
    for room in (4 * STEP, 4 * STEP + SPARE):
        q = mx.random.normal((1, H, 1, D)).astype(dtype)
        k, v = (mx.random.normal((1, K, room, D)).astype(dtype) for _ in range(2))
        for start, stop in ((0, 500), (300, 500), (300, 700), (1, 513)):
            error = _error(q, k, v, start, stop)
            print(f"  room for {room}, keys {start} to {stop}: off by {error:.1e}")
        same = _same_whatever_was_allocated(q, k, v, room)
        print(f"  room for {room}: bits {'do not depend' if same else 'depend'} on other memory")


def _error(q: mx.array, k: mx.array, v: mx.array, start: int, stop: int) -> float:
    """The largest difference from the same in float32, over its largest value."""
    k, v = k[:, :, start:stop], v[:, :, start:stop]
    actual = mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE).astype(mx.float32)
    q, k, v = (x.astype(mx.float32) for x in (q, k, v))
    k, v = (mx.repeat(x, H // K, axis=1) for x in (k, v))
    expected = mx.softmax(SCALE * q @ k.swapaxes(-1, -2), axis=-1) @ v
    worst = mx.abs(actual - expected).max() / mx.abs(expected).max()
    return float(worst.item())


def _same_whatever_was_allocated(q: mx.array, k: mx.array, v: mx.array, room: int) -> bool:
    """Whether the first 300 keys give the same bits in buffers of fresh and of used memory."""
    found = []
    for before in (0, SPARE, 0, SPARE):
        mx.clear_cache()
        if before:  # memory a little larger than what is asked for next
            used = mx.zeros((1, K, room + before, D), k.dtype)
            mx.eval(used)
            del used
        buffers = [mx.zeros((1, K, room, D), k.dtype) for _ in range(2)]
        for buffer, x in zip(buffers, (k, v), strict=True):
            buffer[:, :, :300] = x[:, :, :300]
        mx.eval(buffers)
        keys, values = (buffer[:, :, :300] for buffer in buffers)
        found.append(mx.fast.scaled_dot_product_attention(q, keys, values, scale=SCALE))
        mx.eval(found[-1])
    return all(bool(mx.array_equal(found[0], other)) for other in found[1:])


if __name__ == "__main__":
    main()
