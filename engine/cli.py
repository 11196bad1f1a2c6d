"""The command line: which commands there are. Each is a module of `engine/commands`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import typer

# In the order of `engine --help`; a-b stands in a_b.py.
COMMANDS = (
    "serve", "generate", "chat", "list", "discover", "probe", "bench", "convert", "gpu-info",
)  # fmt: skip

app = typer.Typer(
    help="Run language models on Apple MLX.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options() -> None:
    # MLX reads the variable when it is imported, which is in a command: certificates are of float32
    # that is float32. Set to 1 it is left so.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")


def _function(command: str) -> Callable[..., Any]:
    name = command.replace("-", "_")
    return getattr(importlib.import_module(f"{__package__}.commands.{name}"), name)


for command in COMMANDS:
    app.command(command)(_function(command))
