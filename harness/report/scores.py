"""The scores of planted faults: a table in Markdown, JSON, and a line for each that went wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.whole import write_whole

from .. import environment
from ..errors import BadOption
from ..files import json_with_rows
from ..metrics import FLOOR
from ..scoreboard import board, by_kind
from ..types import FAIL

SCHEMA = "harness.scores/1"


def write(scores: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write all scores with their sums. Raises BadOption where that cannot be done."""
    document = {
        "schema": SCHEMA,
        "environment": environment.describe(),
        "total": asdict(board(scores)),
        "kinds": {kind: asdict(b) for kind, b in by_kind(scores).items()},
    }
    try:
        write_whole(path, json_with_rows(document, "scores", scores))
    except OSError as error:
        raise BadOption(f"--json {path}: {error.strerror}") from None


def misses(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for every fault not found and every alarm that is false."""
    lines = []
    for s in scores:
        where = f"{s['fault'] or 'clean'} in {s['candidate']} on {s['model']}, {s['dtype']}"
        if s["fault"] and not s["equivalent"]:
            if s["verdict"] != FAIL:
                lines.append(f"not found: {where}: {s['verdict']}; {s['diagnosis']}")
        elif s["verdict"] == FAIL and (s["fault"] or s["candidate"] == "engine"):
            lines.append(f"false alarm: {where}: {s['named']}; {s['diagnosis']}")
    return lines


def as_markdown(scores: Sequence[Mapping[str, Any]]) -> str:
    """The scoreboard as a table, and lines for what is counted once."""
    rows = [
        "| kind | faults | runs | found | block named | module named |",
        "|---|---|---|---|---|---|",
    ]
    for kind, b in by_kind(scores).items():
        names = {s["fault"] for s in scores if s["fault"].startswith(f"{kind}.")}
        rows.append(
            f"| {kind} | {len(names)} | {b.detected[1] + b.equivalent_quiet[1]} | "
            f"{_share(b.detected)} | {_share(b.block)} | {_share(b.module)} |"
        )
    b = board(scores)
    names = {s["fault"] for s in scores if s["fault"]}
    runs = b.detected[1] + b.equivalent_quiet[1]
    rows.append(
        f"| all | {len(names)} | {runs} | {_share(b.detected)} | {_share(b.block)} | "
        f"{_share(b.module)} |"
    )
    by_dtype = []
    for dtype in FLOOR:
        mine = board([s for s in scores if s["dtype"] == dtype])
        if mine.clean_quiet[1]:
            alarms = mine.clean_quiet[1] - mine.clean_quiet[0]
            open_ones = mine.clean_quiet[0] - mine.clean_passed[0]
            by_dtype.append(f"{dtype} {alarms} of {mine.clean_quiet[1]} ({open_ones} open)")
    quiet = b.equivalent_quiet[1] - b.equivalent_quiet[0]
    return "\n".join(
        [*rows, "", f"False alarms on clean runs: {', '.join(by_dtype)}; on equivalent mutants: "
         f"{quiet} of {b.equivalent_quiet[1]}."]
    )  # fmt: skip


def _share(count: tuple[int, int]) -> str:
    right, of = count
    return f"{right} of {of} ({right / of:.1%})" if of else "-"
