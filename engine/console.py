"""What both command lines share: errors become one line on stderr and exit status 2."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any

from .errors import EngineError

BAD_INPUT = 2
INTERRUPTED = 130
BUILDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")  # each owns libmlx.so


def run(app: Any, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a typer application and return its exit status.

    Errors of the user's (EngineError, wrong options, a disk that is full or may not be written to)
    are one line; with `--debug` anywhere the traceback is shown. A missing optional library is
    explained the same way.
    """
    try:
        return _run(app, name, arguments)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _let_go(stream)


def remark(line: str) -> None:
    """Print a line for people on stderr. That it cannot be written, as a log on a full disk, stops
    nothing."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _run(app: Any, name: str, arguments: Sequence[str] | None) -> int:
    import typer
    from typer.exceptions import TyperException

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"] or ["--help"]
    try:
        result = typer.main.get_command(app).main(arguments, name, standalone_mode=False)
        if result == INTERRUPTED:  # typer has caught it
            raise KeyboardInterrupt
        sys.stdout.flush()  # what cannot be written is told here, not as the interpreter ends
        return result if isinstance(result, int) else 0
    except typer.Exit as stop:
        return stop.exit_code
    except TyperException as error:
        message = error.format_message()  # a wrong option
    except (typer.Abort, KeyboardInterrupt):
        remark(f"{name}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except EngineError as error:
        if debug:
            raise
        message = str(error)
    except OSError as error:
        if debug:
            raise
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except ImportError as error:
        if debug or "mlx" not in f"{error.name} {error}":
            raise
        message = missing_mlx(error)
    remark(f"{name}: {printable(' '.join(message.split()))}")
    return BAD_INPUT


def _let_go(stream: Any) -> None:
    """Drop what a stream cannot write: the interpreter would try again, and end with status 120."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def printable(text: str) -> str:
    """What may come from a foreign file, without what steers a terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def missing_mlx(error: ImportError) -> str:
    """Why MLX cannot be imported, and the way out; Linux needs exactly one build beside it."""
    builds = [name for name in BUILDS if _version(name)]
    if _version("mlx") is None:
        problem = "MLX is not installed"
    elif len(builds) > 1:
        problem = f"{' and '.join(builds)} own the same library: uninstall all but one"
    elif sys.platform == "linux" and not builds:
        problem = "mlx is installed without a build for Linux"
    else:
        problem = f"mlx {_version('mlx')} cannot be imported ({str(error).splitlines()[0]})"
    return f"{problem}: pip install 'mlx-parity[cpu]', or [cuda13] for an NVIDIA GPU"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
