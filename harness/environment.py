"""What moves numbers here: versions, device, switches; and whether float32 is float32."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from functools import cache
from typing import Any

import numpy as np

PACKAGES = ("mlx", "mlx-lm", "torch", "transformers", "tokenizers", "numpy", "safetensors")
VARIABLES = ("MLX_ENABLE_TF32", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE")

# A float32 product of this width is off by about 3e-7, one in TF32 by about 3e-4.
PRODUCT = 512
PRODUCT_LIMIT = 1e-5


def describe() -> dict[str, Any]:
    """Versions, platform, device and the variables that are set, as JSON-able values."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": mlx_device(),
        "packages": {name: version(name) for name in PACKAGES},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def version(package: str) -> str | None:
    """The installed version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def mlx_device() -> dict[str, Any]:
    """MLX's default device and its name."""
    import mlx.core as mx

    from engine.runtime import device_name

    # Before 0.30.4 only mx.metal could be asked, and only where there is one.
    ask = getattr(mx, "device_info", mx.metal.device_info if mx.metal.is_available() else dict)
    return {"kind": device_name(), "name": str(ask().get("device_name", "unknown"))}


def device_class(device: str) -> str:
    """What limits are measured for: "cpu-x86_64", "metal-apple-m3-max", "cuda-nvidia-h200".

    `device` is a backend's: cpu, host, metal or cuda, or a class already, as a trace may name it.
    """
    if "-" in device:
        return device
    from engine.runtime import device_class as of

    return of(device)


def product_error() -> float:
    """Relative error of one float32 product of 512 cubed against float64, once per device."""
    import mlx.core as mx

    return _product_error(str(mx.default_device()))


@cache
def _product_error(device: str) -> float:
    import mlx.core as mx

    random = np.random.default_rng(0)
    a, b = (random.standard_normal((PRODUCT, PRODUCT), np.float32) for _ in range(2))
    actual = np.array(mx.array(a) @ mx.array(b))
    expected = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
