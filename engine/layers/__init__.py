"""The parts of a block: attention, rotary embedding, norms, MLP, mixture of experts.

A part is built from its spec and called with a `tap`: `tap(name, x) -> x` is told every
intermediate result that has a transformers module path, and may give another array back. The
default does nothing, so what is observed is what runs.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

Tap = Callable[[str, mx.array], mx.array]


def no_tap(name: str, x: mx.array) -> mx.array:
    """Observe nothing."""
    return x


def under(tap: Tap, prefix: str) -> Tap:
    """A tap for a part: its names get the path of the part in front."""
    if tap is no_tap:
        return no_tap
    return lambda name, x: tap(f"{prefix}.{name}", x)


def feeding(tap: Tap) -> Tap:
    """A tap that gives other arrays back: what is compiled cannot take them in."""
    tap.feeds = True  # type: ignore[attr-defined]
    return tap


def scaled(x: mx.array, factor: float) -> mx.array:
    """x times a factor that is not itself rounded to the dtype of x."""
    return x if factor == 1.0 else (x.astype(mx.float32) * factor).astype(x.dtype)
