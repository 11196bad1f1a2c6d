"""Whether another machine computes what this one would: code, versions, device class, limits.

What moves a number is described as a flat table of texts, so that two machines are compared line by
line. What is the same by construction (the variables that an executor sets) is not in it.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

from engine.subject import BUILDS

from ..environment import PACKAGES, version

CODE = ("engine", "harness")
NONE = "not installed"


def default_kind() -> str:
    """ "cpu" or "gpu": where MLX computes in this process."""
    import mlx.core as mx

    return "cpu" if mx.default_device().type == mx.cpu else "gpu"


def describe(kind: str) -> dict[str, str]:
    """This machine; makes `kind`, "cpu" or "gpu", where MLX computes from here on.

    Raises MetalNotAvailable where there is no GPU.
    """
    from engine.runtime import device_class, use_device

    from ..limits import find_limits

    use_device(kind)
    of = device_class()
    return {
        **{f"the code of {package}": code_sha256(package)[:12] for package in CODE},
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{name: version(name) or NONE for name in (*PACKAGES, *BUILDS)},
        "the device class": of,
        "the table of limits": _sha256(Path(find_limits(of).source).read_bytes())[:12],
    }


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """What is another there than here, one line each."""
    return [
        f"{name} is {found.get(name, NONE)}, here it is {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]


def code_sha256(package: str) -> str:
    """sha256 over the names and bytes of every file of a package, its data included."""
    import importlib

    root, digest = Path(str(importlib.import_module(package).__file__)).parent, hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
