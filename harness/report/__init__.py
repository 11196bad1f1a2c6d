"""Verdicts for people and programs: one file per format, found by scanning this folder.

A file has `write(verdict: Verdict, path: Path) -> None`; its module's name is the option that
asks for it (`--json FILE`, `--html FILE`). `terminal.py` and `brief.py` alone give text instead.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from ..errors import BadOption
from ..types import Verdict


def check_writable(path: Path, option: str) -> None:
    """Raise BadOption before any work for a file that could not be written after it."""
    if not path.parent.is_dir():
        raise BadOption(f"{option} {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise BadOption(f"{option} {path}: that is a folder; name a file")


def write(verdict: Verdict, name: str, path: Path) -> None:
    """Write a verdict in one of FORMATS. Raises BadOption where that cannot be done."""
    try:
        importlib.import_module(f".{name}", __name__).write(verdict, path)
    except OSError as error:
        raise BadOption(f"--{name} {path}: {error.strerror}") from None
