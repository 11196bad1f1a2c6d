"""The machine MLX runs on: device, memory, and the switches that move numbers."""

from __future__ import annotations

import os
import platform
import re

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
                "(macOS on Apple Silicon) or mlx[cuda13]; engine gpu-info shows what there is"
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


def device_class(kind: str | None = None) -> str:
    """Devices that round alike: "cpu-x86_64", "metal-apple-m3-max", "cuda-nvidia-h200".

    `kind` is "cpu", "metal" or "cuda", None for MLX's default device. Limits are measured for a
    class, and parity is certified for one.
    """
    kind = kind or device_name()
    if kind in ("metal", "cuda"):
        name = str(mx.device_info().get("device_name", "unknown")).lower()
        return f"{kind}-" + "-".join(re.findall(r"[a-z0-9]+", name))
    machine = platform.machine().lower()
    return "cpu-" + {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)


def tf32_pinned_off() -> bool:
    """Whether float32 products are full float32 on GPUs that would use TF32."""
    return os.environ.get("MLX_ENABLE_TF32") == "0"


def peak_memory() -> int:
    """Bytes MLX has held at most since the last reset."""
    return mx.get_peak_memory()
