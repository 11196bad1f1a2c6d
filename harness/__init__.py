"""Prove, or disprove with the place and the size of the error, that an MLX implementation
computes what the original computes.

Importing this package pins TF32 off, the one thing done at import: MLX reads the variable when it
is imported, and float32 products in TF32 cannot be judged. Public names are loaded on use.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

os.environ.setdefault("MLX_ENABLE_TF32", "0")

__version__ = "0.1.0"

_HOME = {
    "compare": "judge",
    "Verdict": "types",
    "CheckResult": "types",
    "SiteDiff": "types",
    "Probe": "types",
    "Site": "types",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
