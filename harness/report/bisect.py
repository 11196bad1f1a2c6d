"""What a bisection found, in a terminal and as JSON, schema `harness.bisect/1`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.console import printable
from engine.whole import write_whole

from ..bisect.findings import BETTER, BOTH_OFF, MOVED, SAME, WORSE, Findings, Step, Tried
from ..bisect.moves import Move
from ..types import ERROR, INCONCLUSIVE
from ._words import limits_of, name_of, number
from .json import finite

SCHEMA = "harness.bisect/1"
COLOURS = {SAME: "green", MOVED: "bold red", INCONCLUSIVE: "yellow", ERROR: "bold red"}
SHOWN = 8  # releases that were not tried


def show(found: Findings, console: Console) -> None:
    """Print every release that was run, and the one that moved the numbers."""
    console.print(_head(found), soft_wrap=False)
    console.print()
    console.print(_columns(found))
    console.print(_releases(found))
    for line in _left_out(found):
        console.print(Text(line, "dim"))
    console.print()
    console.print(_end(found))


def write(found: Findings, path: Path) -> None:
    """Write the document whole or not at all. Raises OSError."""
    text = json.dumps(document(found), indent=1, allow_nan=False) + "\n"
    write_whole(path, text.encode())


def document(found: Findings) -> dict[str, Any]:
    """The JSON-able document; keys may be added to it, never change meaning."""
    return finite(
        {
            "schema": SCHEMA,
            "verdict": found.verdict,
            "package": found.package,
            "model": found.model,
            "candidate": found.candidate,
            "reference": found.reference,
            "dtype": found.dtype,
            "device": found.device,
            "bits": found.bits,
            "old": found.old,
            "new": found.new,
            "swapped": found.swapped,
            "line": found.line,
            "releases": [_tried(tried) for tried in found.tried],
            "skipped": found.skipped,
            "steps": [_step(step) for step in found.steps],
            "further": found.further,
            "unsteady": found.unsteady,
            "error": found.error,
            "calibration": found.calibration,
            "environment": found.environment,
            "environments": {
                "folder": found.folder, "bytes": found.size, "made": found.made,
            },
            "seconds": found.seconds,
        }
    )  # fmt: skip


def _tried(tried: Tried) -> dict[str, Any]:
    return {
        "release": tried.release,
        "answer": tried.answer,
        "why": tried.why,
        "against": tried.against,
        "largest": tried.largest and _move(tried.largest),
        "other_bits": tried.bits,
        "error": tried.error,
        "seconds": tried.seconds,
        "installing": tried.installing,
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "before": step.before,
        "after": step.after,
        "since": step.since,
        "between": list(step.between),
        "direction": step.direction,
        "errors": {"before": step.errors[0], "after": step.errors[1]},
        "first": step.first and _move(step.first),
        "module": step.module and _move(step.module),
        "greedy": {"tokens": step.greedy[0], "first_other": step.greedy[1]},
        "brought": {name: list(pair) for name, pair in step.brought.items()},
        "sites": [_move(move) for move in step.moves],
    }


def _move(move: Move) -> dict[str, Any]:
    return {
        "site": move.site.path,
        "block": move.site.block,
        "kind": move.site.kind,
        "mode": move.mode,
        "probe": move.probe,
        "difference": move.difference,
        "noise": move.noise,
        "ratio": move.ratio,
        "limit": move.limit,
        "before": move.before,
        "after": move.after,
        "other_bits": move.bits,
        "moved": move.moved,
        "note": move.note,
    }


def _head(found: Findings) -> Text:
    known = found.environment
    device = known.get("device", {})
    packages = ("mlx", "mlx-lm", "torch", "transformers", "tokenizers")
    here = known.get("packages", {})
    versions = "  ".join(f"{name} {here[name]}" for name in packages if here.get(name))
    return Text.assemble(
        (found.model, "bold"),
        f"  {found.candidate} with {found.package} {found.old} to {found.new}, {found.dtype}\n",
        (f"{known.get('platform', '')}, python {known.get('python', '')}, ", "dim"),
        (f"MLX on {device.get('kind')} ({device.get('name')})\n", "dim"),
        (f"here {versions}\n", "dim"),
        (f"oracle and noise: {found.reference}; moved means ", "dim"),
        ("with any other bit" if found.bits else "by more than the noise allows", "dim"),
    )


def _columns(found: Findings) -> Text:
    """What the columns of the table are."""
    several = len({tried.against for tried in found.tried}) > 2  # every release
    return Text(
        f"ratio: difference / noise from {'the release before' if several else found.old}, at the "
        "site nearest to its limit\n"
        "bits: numbers with other bits; error: that of the release itself over its limit, at the "
        "worst site",
        "dim",
    )


def _releases(found: Findings) -> Table:
    """A row for each release that was run, with the site nearest to its limit."""
    table = Table(box=None, pad_edge=False)
    table.add_column("release", no_wrap=True)
    table.add_column("numbers", no_wrap=True)
    for name in ("ratio", "limit", "bits", "error", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("at", overflow="fold")
    for tried in found.tried:
        table.add_row(tried.release, *_cells(tried))
    return table


def _cells(tried: Tried) -> list[str | Text]:
    if tried.answer is None:
        return [Text("not run", "yellow"), *[""] * 5, Text(printable(tried.why or ""))]
    at = tried.largest
    assert at is not None and tried.error is not None, "it was run"
    where = f"{name_of(at.site)}, {at.mode}, {at.probe}" if tried.bits else "equal in all bits"
    answer = Text(tried.answer, COLOURS[tried.answer])
    if tried.against is None:
        answer, where = Text("repeats", "dim"), f"run twice: {where}"
    return [
        answer, number(at.ratio), f"{at.limit:.1f}", f"{tried.bits:.0%}", number(tried.error),
        f"{tried.seconds:.0f}", where,
    ]  # fmt: skip


def _left_out(found: Findings) -> list[str]:
    left = list(found.skipped.items())
    told = [f"not tried: {version}, {printable(why)}" for version, why in left[:SHOWN]]
    if len(left) > SHOWN:
        told.append(f"not tried: {len(left) - SHOWN} more, in the JSON")
    return told


def _end(found: Findings) -> Text:
    text = Text(_verdict(found), COLOURS[found.verdict])
    for step in found.steps:
        for line in _told(found, step):
            text.append(f"\n{line}", "default")
    if found.further:
        after = found.steps[-1].after
        text.append(
            f"\nand again later: {found.new} is not as {after}; go on with --good {after}, or see "
            "all with --every",
            "default",
        )
    if found.swapped:
        text.append("\n--good is the newer one: read from the older one on", "dim not bold")
    for line in limits_of(found.calibration):
        text.append(f"\n{line}", "dim not bold")
    run = sum(tried.seconds > 0 for tried in found.tried)
    text.append(
        f"\n{run} of {len(found.line)} releases run; {found.made} environments made in "
        f"{found.folder}, all {found.size / 1e6:.0f} MB; {found.seconds:.0f} s",
        "dim not bold",
    )
    return text


def _verdict(found: Findings) -> str:
    name = found.package
    if found.unsteady:
        return f"INCONCLUSIVE: {found.unsteady}"
    if not found.steps:
        told = f"SAME: {name} {found.old} and {found.new} do not differ"
        at = max(
            (t.largest for t in found.tried if t.largest and t.against and t.bits),
            key=lambda move: move.ratio / move.limit,
            default=None,
        )
        if at is None:
            return f"{told} in a bit"
        return (
            f"{told} beyond the noise: {number(at.ratio)} times it where it is nearest to its "
            f"limit of {at.limit:.1f}; --bits finds what moved at all"
        )
    if len(found.steps) > 1:
        return f"MOVED: {len(found.steps)} releases of {name} moved the numbers"
    step = found.steps[0]
    if step.between:
        return f"INCONCLUSIVE: {name} {step.after} or one before it moved the numbers"
    return f"MOVED: {name} {step.after} moved the numbers; {step.before} has the old ones"


def _told(found: Findings, step: Step) -> list[str]:
    """What there is to say of one step, a line each."""
    lines = []
    if len(found.steps) > 1:
        lines.append(f"{found.package} {step.before} to {step.after}:")
    if step.between:
        lines.append(f"not told apart, because they could not be run: {', '.join(step.between)}")
    if step.since != step.before:
        lines.append(
            f"no release did so alone: what moved since {step.since} is beyond the limit from "
            f"{step.after} on"
        )
    if step.first is not None:
        lines += _place("first site", step.first)
    if step.module is not None:
        lines += _place("first in it", step.module)
    moved = {move.site for move in step.moves if move.moved}
    lines.append(f"sites moved: {len(moved)} of {len({move.site for move in step.moves})}")
    lines += _direction(step)
    tokens, other = step.greedy
    if tokens:
        told = "equal" if other is None else f"other ones from number {other + 1} on"
        lines.append(f"greedy tokens: {told}, of {tokens}")
    for name, (before, after) in step.brought.items():
        lines.append(f"came with it: {name} {before or 'none'} -> {after or 'none'}")
    return lines


def _place(what: str, move: Move) -> list[str]:
    named = "" if move.site.kind == "module" else f" ({name_of(move.site)})"
    where = f"{what}: {move.site.path}{named}, {move.mode}, probe {move.probe!r}"
    if move.note:
        return [where, f"  {move.note}"]
    return [
        where,
        f"  moved by {move.difference:.1e}, {number(move.ratio)} times the noise (limit "
        f"{move.limit:.1f}); error / noise was {number(move.before)} and is {number(move.after)}",
    ]


def _direction(step: Step) -> list[str]:
    before, after = (number(share) for share in step.errors)
    told = {
        WORSE: "for the worse: parity held before and does not after",
        BETTER: "for the better: parity did not hold before and does after",
        BOTH_OFF: "parity holds neither before nor after",
    }.get(step.direction, "neither is wrong: parity holds before and after")
    return [told, f"  the largest error was {before} of its limit and is {after}"]
