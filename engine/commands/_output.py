"""How commands print: results to stdout, as a table or JSON; what was decided to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..console import printable, remark

if TYPE_CHECKING:
    from ..backend import Choice
    from ..weights.quantised import Packing


def tell(choice: Choice) -> None:
    """Print which backend was chosen, and why."""
    why, *details = choice.reason.splitlines()
    remark(f"backend: {choice.backend}, {why}")
    for line in details:
        remark(f"  {line}")


def tell_packing(packing: Packing | None) -> None:
    """Print how keys and values are kept, where they are packed."""
    if packing is not None:
        remark(f"keys and values: {packing.bits} bits, groups of {packing.group_size}")


def print_json(value: Any) -> None:
    """Print a value as JSON that people can read, too."""
    print(json.dumps(value, indent=1))


def show(what: Any, notes: Iterable[str] = ()) -> None:
    """Print a table or a text, then notes; 100 columns wide where the output is no terminal.

    No markup: what foreign files hold is shown as it is.
    """
    from rich.console import Console
    from rich.padding import Padding

    width = None if sys.stdout.isatty() else 100
    screen = Console(width=width, highlight=False, markup=False, emoji=False)
    screen.print(what)
    for note in notes:
        screen.print(Padding(printable(note), (0, 0, 0, 2)), style="dim")


def tell_skipped(skipped: Iterable[str]) -> None:
    """Say what a search passed over."""
    for why in skipped:
        remark(f"skipped: {printable(why)}")


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
