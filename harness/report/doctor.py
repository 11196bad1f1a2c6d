"""What was found of this machine, in a terminal and as JSON, schema `harness.doctor/1`."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..doctor import Health

SCHEMA = "harness.doctor/1"


def show(health: Health, console: Console) -> None:
    """Print a line for each finding, its advice below it, and what can be judged."""
    table = Table.grid(padding=(0, 2))
    for finding in health.findings:
        mark = Text("!", "yellow") if finding.advice else Text("ok", "green")
        table.add_row(mark, finding.name, finding.told)
        if finding.advice:
            table.add_row("", "", Text(finding.advice, "yellow"))
    console.print(table)
    console.print()
    missing = [what for what, names in health.judges.items() if not names]
    if missing:
        console.print(Text(f"nothing can be judged here: no {', no '.join(missing)}", "bold red"))
    else:
        console.print(Text("this machine can judge", "bold green"))
    for what, names in health.judges.items():
        console.print(f"  {what:10}  {', '.join(names) or 'none'}")


def document(health: Health) -> str:
    """The same as a JSON document; keys may be added to it, never change meaning."""
    found = {
        "schema": SCHEMA,
        "can_judge": health.exit_status == 0,
        "findings": [asdict(finding) for finding in health.findings],
        "judges": health.judges,
    }
    return json.dumps(found, indent=1)
