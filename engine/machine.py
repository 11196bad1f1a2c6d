"""What this machine is to MLX: devices, memory, versions and pins, as data to print."""

from __future__ import annotations

import contextlib
import platform
import resource
import sys
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")


def describe() -> dict[str, Any]:
    """Everything `engine gpu-info` shows; memory in bytes, None where it cannot be told."""
    import mlx.core as mx

    from . import __version__
    from .runtime import device_class, device_name, tf32_pinned_off
    from .subject import versions
    from .userdata import certificate_folder

    return {
        "device": device_name(),
        "name": str(mx.device_info().get("device_name", "unknown")),
        "device_class": device_class(),
        "gpu": "metal" if mx.metal.is_available() else "cuda" if mx.cuda.is_available() else None,
        "memory": memory(),
        "versions": {
            "engine": __version__,
            "python": platform.python_version(),
            **versions(),
        },
        "pins": {"tf32": "off" if tf32_pinned_off() else "on"},
        "certificates": str(certificate_folder()),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def memory() -> dict[str, int | None]:
    """Bytes: of the device, what can be had now, and MLX's own limits.

    `wired_limit` is how much MLX may keep resident on Metal, `recommended` the most that macOS lets
    it ask for; elsewhere there are none.
    """
    import mlx.core as mx
    import psutil

    info, wired = mx.device_info(), None
    if mx.metal.is_available():
        wired = mx.set_wired_limit(0)  # which gives back what it was; there is no other way to ask
        mx.set_wired_limit(wired)
    return {
        "total": _number(info, "total_memory", "memory_size") or psutil.virtual_memory().total,
        "available": available_memory(),
        "limit": mx.get_memory_limit(),
        "recommended": _number(info, "max_recommended_working_set_size"),
        "wired_limit": wired,
    }


def available_memory() -> int:
    """Bytes that MLX can have now: of its GPU, else of the machine, or its container if less."""
    import mlx.core as mx
    import psutil

    if free := _number(mx.device_info(), "free_memory"):  # CUDA has memory of its own
        return free
    found = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        most = int((CGROUP / "memory.max").read_text())
        found = min(found, most - int((CGROUP / "memory.current").read_text()))
    if mx.metal.is_available():
        found = min(found, mx.get_memory_limit())
    return found


def peak_resident() -> int:
    """Bytes of memory that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"


def _number(info: dict[str, Any], *names: str) -> int | None:
    """The first of some figures that the device tells."""
    return next((int(info[name]) for name in names if info.get(name)), None)
