"""What was found of a tokenizer, in a terminal and as JSON, schema `harness.tokenizer/1`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.whole import write_whole

from ..environment import PACKAGES, version
from ..tokenizers import Answer, Findings, State
from ..types import ERROR, FAIL, SKIP
from ._words import WORDS
from .terminal import COLOURS

SCHEMA = "harness.tokenizer/1"


def show(model: str, findings: Findings, console: Console) -> None:
    """Print the answers, the table of states, and the smallest input that shows a difference."""
    title = f"  {findings.candidate} against {findings.reference}, tokenizer"
    console.print(Text.assemble((model, "bold"), (title, "")))
    console.print()
    table = Table.grid(padding=(0, 2))
    for answer in findings.answers:
        told = Text(_told(answer))
        table.add_row(Text(answer.verdict, COLOURS[answer.verdict]), answer.question, told)
    console.print(table)
    if findings.states:
        console.print()
        console.print(_states(findings.states))
    console.print()
    text = Text(WORDS[findings.verdict], COLOURS[findings.verdict])
    for answer in findings.answers:
        if answer.smallest is not None:
            text.append(_smallest(answer), "default")
    random = f"{findings.random} random texts of seed {findings.seed}, {findings.seconds:.1f} s"
    text.append(f"\n{random}", "dim not bold")
    console.print(text)


def write(model: str, candidate: str, result: Findings | str, path: Path) -> None:
    """Write the document whole or not at all; a text as result is an error. Raises OSError."""
    write_whole(path, (json.dumps(document(model, candidate, result), indent=1) + "\n").encode())


def document(model: str, candidate: str, result: Findings | str) -> dict[str, Any]:
    """The JSON-able document; keys may be added to it, never change meaning."""
    error = result if isinstance(result, str) else None
    found = Findings("transformers", candidate, 0, 0) if isinstance(result, str) else result
    return {
        "schema": SCHEMA,
        "verdict": found.verdict if error is None else ERROR,
        "model": model,
        "candidate": found.candidate,
        "reference": found.reference,
        "error": error,
        "random_texts": found.random,
        "seed": found.seed,
        "answers": [asdict(answer) for answer in found.answers],
        "states": [asdict(state) for state in found.states],
        "environment": {"packages": {name: version(name) for name in PACKAGES}},
        "seconds": found.seconds,
    }


def _told(answer: Answer) -> str:
    if answer.verdict == SKIP:
        return answer.reason or ""
    rate = "" if answer.rate is None else f"; below {answer.rate:.2%} at 95 %"
    if answer.verdict == FAIL:
        return f"{answer.differences} of {answer.asked} differ: {answer.what}{rate}"
    return f"{answer.asked} equal: {answer.what}{rate}"


def _states(states: list[State]) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left")
    for name in ("special tokens", "source", "generation prompt", "BOS", "EOS", "equal"):
        table.add_column(name, style="dim" if name == "source" else "")
    for state in states:
        prompt = {None: "-", True: "yes", False: "no"}[state.generation]
        table.add_row(
            "on" if state.special else "off",
            state.source,
            prompt,
            "none named" if state.bos is None else str(state.bos),
            ", ".join(map(str, state.eos)) or "-",
            "yes" if state.equal else "NO",
        )
    return table


def _smallest(answer: Answer) -> str:
    shown = answer.smallest
    assert shown is not None
    return (
        f"\n{answer.question}, of {shown.input} ({shown.reason}):"
        f"\n  expected {shown.expected}\n  actual   {shown.actual}"
    )
