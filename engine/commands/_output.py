"""How commands print: results to stdout, as a table or JSON; what was decided to stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..backend import Choice


def tell(choice: Choice) -> None:
    """Print which backend was chosen, and why."""
    why, *details = choice.reason.splitlines()
    print(f"backend: {choice.backend}, {why}", file=sys.stderr)
    for line in details:
        print(f"  {line}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as JSON that people can read, too."""
    print(json.dumps(value, indent=1))


def console() -> Any:
    """100 columns where the output is no terminal. No markup: foreign names are shown as they are."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 100
    return Console(width=width, highlight=False, markup=False, emoji=False)


def table(*columns: str) -> Any:
    """A table of bare columns; text that is too long is folded."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def rate(tokens_per_second: float | None) -> str:
    """A speed as people read it."""
    return "too few to time" if tokens_per_second is None else f"{tokens_per_second:.1f} tokens/s"
