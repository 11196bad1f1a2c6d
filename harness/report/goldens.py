"""What is recorded, and how two recordings differ, in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.console import printable

from ..golden.difference import Difference
from ..golden.format import Content


def listed(entries: Iterable[Mapping[str, Any]]) -> Table:
    """A line for each golden."""
    table = _table("model", "reference", "dtype", "kB", "date", "device", "torch", "transformers")
    for entry in entries:
        packages = entry.get("packages") or {}
        device = entry.get("device") or {}
        cells = [
            entry["model"], entry["reference"], entry["dtype"],
            f"{entry.get('bytes', 0) // 1000:,}", entry.get("date", ""), device.get("name", ""),
            packages.get("torch", ""), packages.get("transformers", ""),
        ]  # fmt: skip
        table.add_row(*(printable(str(cell)) for cell in cells))
    return table


def shown(entry: Mapping[str, Any], content: Content) -> RenderableType:
    """Where a golden comes from, and its probes."""
    origin = _table("", "", header=False)
    for key, value in entry.items():
        if isinstance(value, Mapping):
            value = "  ".join(f"{k} {v}" for k, v in value.items() if v)
        value = f"{value:,}" if isinstance(value, int) else printable(str(value))
        origin.add_row(Text(printable(key), "dim"), value)
    form = "whole arrays"
    if content.sketch:
        form = f"sketches of {content.sketch.columns} columns, blocks on seeded inputs"
    origin.add_row(Text("holds", "dim"), f"{len(content.sites)} sites, {form}")
    probes = _table("probe", "tokens", "largest noise", "why")
    for probe in content.probes:
        evidence = content.evidence(probe)
        noise = max((n for n in evidence.noise["isolated"].values()), default=0.0)  # type: ignore[union-attr]
        probes.add_row(probe.name, str(len(probe.tokens)), f"{noise:.1e}", probe.reason)
    return Group(origin, Text(), probes)


def different(difference: Difference) -> RenderableType:
    """What moved between two goldens."""
    origin = _table("", "one", "other")
    for key, (one, other) in difference.origin.items():
        origin.add_row(Text(printable(key), "dim"), printable(one), printable(other))
    parts: list[RenderableType] = [origin] if difference.origin else []
    if difference.sites:
        table = _table("site", "moved", "of the noise", "noise, one", "noise, other", "probe")
        for site in difference.sites:
            table.add_row(
                site.name, f"{site.moved:.1e}", f"{site.ratio:.2f}",
                f"{site.noise[0]:.1e}", f"{site.noise[1]:.1e}", site.probe,
            )  # fmt: skip
        parts += [Text(), table]
    return Group(*parts, Text(), Text(difference.sentence, "red" if difference.moved else "green"))


def _table(*columns: str, header: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, show_header=header, header_style="dim")
    for column in columns:
        number = column in ("kB", "tokens", "moved", "of the noise") or "noise" in column
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table
