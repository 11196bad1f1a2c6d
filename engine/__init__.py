"""Run language models on Apple MLX: small enough to read, real enough to serve.

Public names are loaded when they are used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Model": "model",
    "load": "model",
    "find_model": "files",
    "read_weights": "weights",
    "EngineError": "errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
