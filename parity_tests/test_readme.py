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
    printed = printed.splitlines()
    assert printed[0] == shown[0]
    assert _shapes(printed[4:]) == _shapes(shown[4:])


def _shapes(lines: list[str]) -> list[str]:
    """What does not depend on the machine: no limits, which another class of device may lack."""
    at = next(i for i, line in enumerate(lines) if line.startswith("limits: "))
    return [_shape(line) for line in [*lines[:at], lines[-1]]]


def _shape(line: str) -> str:
    """A line without its numbers, its bar, and which probe was worst."""
    line = re.sub(r"[█·│]{5,}", "bar", line.rstrip())
    line = re.sub(r"[+-]?[\d.,]+(e[+-]?\d+)?", "0", line)
    return re.sub(r"(0 0 0 0 ).+$", r"\1probe", re.sub(r"\s+", " ", line))
