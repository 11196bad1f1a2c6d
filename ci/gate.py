"""The one answer of CI: `NEEDS='{...}' python3 ci/gate.py FOLDER`.

Passes only if every job it needs succeeded, and every leg that `matrix.py` has for the gate left
a verdict that says pass in FOLDER/leg-NAME/verdict.json. A leg that failed, was skipped, was
cancelled or never started is therefore a failure, whatever a workflow makes of it; a leg whose
image has ended is not asked for. NEEDS is `toJSON(needs)`. Standard library only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from matrix import running, warnings
from summary import SCHEMA, to_page


def problems(needs: Mapping[str, Mapping[str, Any]], folder: Path, today: date) -> list[str]:
    """One line for each job that did not succeed and each leg that did not pass."""
    found = [] if needs else ["no job is needed: the gate would judge nothing"]
    for job, state in needs.items():
        if state.get("result") != "success":
            found.append(f"job {job}: {state.get('result')}")
    legs = running("gate", today)
    if not legs:
        found.append("no leg is left for the gate")
    for leg in legs:
        said = verdict(folder / f"leg-{leg.name}" / "verdict.json", leg.name)
        if said != "pass":
            found.append(f"leg {leg.name}: {said}")
    return found


def verdict(file: Path, leg: str) -> str:
    """What a leg's file says; in words, if it is not there or not that leg's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (content["schema"], content["leg"]) != (SCHEMA, leg):
            return "its verdict is another leg's"
        return str(content["verdict"])
    except OSError:
        return "no verdict: it did not run to its end"
    except (ValueError, KeyError, TypeError):
        return "its verdict cannot be read"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        needs = json.loads(os.environ.get("NEEDS", ""))
    except ValueError:
        print("gate: NEEDS is not the JSON of toJSON(needs)", file=sys.stderr)
        return 2
    today = datetime.now(UTC).date()
    found = problems(needs, Path(arguments[0]), today)
    lines = [f"## Gate: {'FAIL' if found else 'PASS'}", ""]
    lines += [f"- {line}" for line in found]
    lines += [f"- warning: {line}" for line in warnings(today)]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    to_page(text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
