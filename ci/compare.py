"""What the action runs: `harness compare` for the repository it is used in, and its page.

Reads PARITY_MODEL, PARITY_CANDIDATE, PARITY_REFERENCE and PARITY_DTYPE; nothing of them reaches a
shell. Runs in the folder it is called from, so that `python:MODULE:FUNCTION` finds the caller's
code. The verdict goes to parity.json in RUNNER_TEMP (else here) and to the action's outputs.
Exit status: that of `harness compare`. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from summary import Result, describe, markdown, to_page

ENVIRONMENT = Path(__file__).resolve().parent / "environment.py"
# It has a PyTorch without CUDA, which is smaller by gigabytes; the caller's own choice wins.
INDEX = "https://download.pytorch.org/whl/cpu"
OPTIONS = {
    "--model": "PARITY_MODEL",
    "--candidate": "PARITY_CANDIDATE",
    "--reference": "PARITY_REFERENCE",
    "--dtype": "PARITY_DTYPE",
}


def command(variables: Mapping[str, str], report: Path) -> list[str]:
    """The comparison that the variables ask for. Raises ValueError where no model is named."""
    if not variables.get("PARITY_MODEL"):
        raise ValueError("the input model is empty: name a folder, a file or a Hub id")
    # The script `harness`, not `-m harness`: a folder of that name in the caller's tree is theirs.
    line = [sys.executable, str(ENVIRONMENT), "harness", "compare", f"--json={report}"]
    for option, name in OPTIONS.items():
        if value := variables.get(name):
            line.append(f"{option}={value}")  # one word, so that a value is never an option
    return line


def main() -> int:
    report = Path(os.environ.get("RUNNER_TEMP", ".")).resolve() / "parity.json"
    report.unlink(missing_ok=True)
    try:
        line = command(os.environ, report)
    except ValueError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    begin = time.monotonic()
    environment = {"PIP_EXTRA_INDEX_URL": INDEX, **os.environ}
    status = subprocess.run(line, env=environment).returncode
    seconds = time.monotonic() - begin
    comparison = json.loads(report.read_text()) if report.exists() else None
    verdict = comparison["verdict"] if comparison else "error"
    seen = f"exit status {status}"
    content = describe("parity", [Result("compare", verdict, seconds, seen, "", comparison)])
    to_page(markdown({**content, "verdict": verdict}))
    if outputs := os.environ.get("GITHUB_OUTPUT"):
        with open(outputs, "a", encoding="utf-8") as file:
            file.write(f"verdict={verdict}\nreport={report}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
