"""The machine MLX runs on: device, memory, and the switches that move numbers."""

from __future__ import annotations

import os

import mlx.core as mx

from .errors import BackendUnavailable, MetalNotAvailable


def use_device(device: str | None) -> str:
    """Make "cpu" or "gpu" MLX's default, or keep its own choice; return what is used.

    Raises MetalNotAvailable when a GPU is asked for and MLX has none.
    """
    if device == "gpu":
        if not (mx.metal.is_available() or mx.cuda.is_available()):
            raise MetalNotAvailable(
                "device gpu: this MLX build has no GPU; use --device cpu, or install MLX for Metal "
                "(macOS on Apple Silicon) or mlx[cuda13]"
            )
        mx.set_default_device(mx.gpu)
    elif device == "cpu":
        mx.set_default_device(mx.cpu)
    elif device is not None:
        raise BackendUnavailable(f"device {device!r} is not one of cpu, gpu")
    return device_name()


def device_name() -> str:
    """ "metal", "cuda" or "cpu": what MLX's default device is."""
    if mx.default_device().type == mx.cpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def tf32_pinned_off() -> bool:
    """Whether float32 products are full float32 on GPUs that would use TF32."""
    return os.environ.get("MLX_ENABLE_TF32") == "0"


def peak_memory() -> int:
    """Bytes MLX has held at most since the last reset."""
    return mx.get_peak_memory()
