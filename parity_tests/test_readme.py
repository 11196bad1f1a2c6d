"""What README.md shows is what its first command prints, numbers apart."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_output_shown_is_the_output(command):
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"It prints.*?```\n(.*?)```", readme, re.DOTALL).group(1)
    shown = [line for line in shown.splitlines() if not line.startswith("environment: ")]
    printed = command("harness", "compare", "--model", "golden/models/tiny-llama").out
    assert [_shape(line) for line in printed.splitlines()[4:]] == [_shape(x) for x in shown[4:]]
    assert printed.splitlines()[0] == shown[0]


def _shape(line: str) -> str:
    """A line without its numbers, its bar, and which probe was worst."""
    line = re.sub(r"[█·│]{5,}", "bar", line.rstrip())
    line = re.sub(r"[\d.,]+(e[+-]?\d+)?", "0", line)
    return re.sub(r"\s+", " ", re.sub(r"(0 0 0\s+)\S+$", r"\1probe", re.sub(r"\s+", " ", line)))
