"""The table of CI's legs: where each runs, with what, what it checks, and when its image ends.

    python3 ci/matrix.py github gate|nightly|hardware    legs=[...], for a workflow's matrix
    python3 ci/matrix.py markdown                        the table of docs/CI.md
    python3 ci/matrix.py warn                            images that end within 60 days

Data only: `leg.py` runs a leg, `checks.py` says what a check does, `gate.py` judges what came back.
Standard library, Python 3.11 or newer.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime

WARN_DAYS = 60
RUNNER_IMAGES = "https://github.com/actions/runner-images"


@dataclass(frozen=True)
class Image:
    """A runner image of GitHub's; `ends` is None where no end is announced."""

    label: str
    macos: str  # "" on Linux
    ends: date | None
    source: str


IMAGES = {
    image.label: image
    for image in (
        Image("ubuntu-24.04", "", None, RUNNER_IMAGES),
        Image("ubuntu-24.04-arm", "", None, RUNNER_IMAGES),
        Image("macos-14", "14", date(2026, 11, 2), f"{RUNNER_IMAGES}/issues/13518"),
        Image("macos-15", "15", None, RUNNER_IMAGES),
        Image("macos-26", "26", None, f"{RUNNER_IMAGES}/issues/13739"),
    )
}


@dataclass(frozen=True)
class Leg:
    """One job.

    `mlx` is oldest (the lower bound of pyproject.toml), pinned (constraints.txt) or newest (what
    pip finds). `device` is cpu, metal or none. `when` is the workflow: the gate, nightly, or
    hardware. A leg with a `variable` runs on the self-hosted labels that this repository variable
    holds, and nowhere while it is empty; `image` then says what such a machine stands for.
    """

    name: str
    image: str
    python: str
    mlx: str
    device: str
    checks: tuple[str, ...]
    when: str = "gate"
    minutes: int = 30
    variable: str = ""

    @property
    def macos(self) -> str:
        return IMAGES[self.image].macos if self.image in IMAGES else ""


CPU = ("parity-cpu", "smoke")
METAL = ("parity-metal", "smoke")

LEGS = (
    Leg("lint", "ubuntu-24.04", "3.11", "pinned", "none", ("lint",)),
    Leg("docs", "ubuntu-24.04", "3.13", "pinned", "none", ("docs",)),
    Leg("wheels", "ubuntu-24.04", "3.13", "pinned", "none", ("wheels",)),
    Leg("linux-x64", "ubuntu-24.04", "3.11", "pinned", "cpu", ("tests", *CPU), minutes=60),
    Leg("cluster", "ubuntu-24.04", "3.11", "pinned", "cpu", ("cluster",)),
    Leg("linux-x64-oldest", "ubuntu-24.04", "3.11", "oldest", "cpu", CPU),
    Leg("linux-arm", "ubuntu-24.04-arm", "3.13", "pinned", "cpu", CPU),
    Leg("macos-15-cpu", "macos-15", "3.11", "pinned", "cpu", CPU),
    Leg("macos-15-metal", "macos-15", "3.13", "pinned", "metal", METAL, minutes=120),
    Leg("macos-26-cpu", "macos-26", "3.14", "pinned", "cpu", CPU),
    Leg("macos-26-metal", "macos-26", "3.14", "pinned", "metal", METAL, minutes=120),
    Leg("linux-x64-newest", "ubuntu-24.04", "3.14", "newest", "cpu", CPU, "nightly"),
    Leg("macos-26-newest", "macos-26", "3.14", "newest", "metal", METAL, "nightly", 120),
    Leg("models-linux", "ubuntu-24.04", "3.13", "pinned", "cpu", ("models",), "nightly", 120),
    Leg("models-macos", "macos-26", "3.13", "pinned", "metal", ("models",), "nightly", 120),
    Leg("macos-14", "macos-14", "3.13", "pinned", "metal", METAL, "hardware", 120, "MACOS_14"),
    Leg("mac", "self-hosted", "3.13", "pinned", "metal", METAL, "hardware", 120, "MAC"),
)
WORKFLOWS = ("gate", "nightly", "hardware")


def ends(leg: Leg) -> date | None:
    """When GitHub takes the leg's image away; a machine of one's own does not end with it."""
    return None if leg.variable or leg.image not in IMAGES else IMAGES[leg.image].ends


def running(when: str, today: date) -> list[Leg]:
    """The legs of a workflow, less those whose image has ended: those cannot hold up a gate."""
    return [leg for leg in LEGS if leg.when == when and not ((end := ends(leg)) and end <= today)]


def matrix(when: str, today: date, variables: Mapping[str, str]) -> list[dict[str, object]]:
    """What a workflow needs to start each leg; a variable's value is a label or a JSON list."""
    rows: list[dict[str, object]] = []
    for leg in running(when, today):
        runner: object = leg.image
        if leg.variable:
            value = variables.get(leg.variable, "").strip()
            if not value:
                continue
            runner = json.loads(value) if value.startswith("[") else value
        row = {"name": leg.name, "runner": runner, "python": leg.python, "minutes": leg.minutes}
        rows.append(row)
    return rows


def warnings(today: date, legs: Iterable[Leg] = LEGS) -> list[str]:
    """One line for each image that is used and ends within 60 days, or has ended."""
    lines = {}
    for leg in legs:
        end = ends(leg)
        if end is None or (end - today).days > WARN_DAYS:
            continue
        left = (end - today).days
        says = f"ends on {end}, in {left} days" if left > 0 else f"ended on {end}"
        then = "" if left > 0 else "; its legs do not run"
        source = IMAGES[leg.image].source
        lines[leg.image] = f"{leg.image} {says}{then}: replace it in ci/matrix.py ({source})"
    return list(lines.values())


def markdown() -> str:
    """The table, and where its dates come from."""
    head = ("leg", "runner", "macOS", "Python", "MLX", "device", "checks", "workflow", "image ends")
    rows = [head, ("---",) * len(head)]
    for leg in LEGS:
        image = IMAGES.get(leg.image)
        end = f"{image.ends or 'not announced'}" if image else "-"
        runner = f"`vars.{leg.variable}`" if leg.variable else f"`{leg.image}`"
        checks = ", ".join(leg.checks)
        cells = (leg.macos or "-", leg.python, leg.mlx, leg.device, checks, leg.when, end)
        rows.append((f"`{leg.name}`", runner, *cells))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- `{i.label}`: {i.source}" for i in IMAGES.values())]
    return "\n".join(lines) + "\n"


def by_name(name: str) -> Leg:
    """The leg of a name. Raises KeyError with the names there are."""
    for leg in LEGS:
        if leg.name == name:
            return leg
    raise KeyError(f"no leg {name!r}: one of {', '.join(leg.name for leg in LEGS)}")


def main(arguments: list[str]) -> int:
    today = datetime.now(UTC).date()
    match arguments:
        case ["github", when] if when in WORKFLOWS:
            try:
                print("legs=" + json.dumps(matrix(when, today, os.environ)))
            except ValueError as error:
                names = ", ".join(leg.variable for leg in LEGS if leg.variable)
                say = f"matrix: a repository variable ({names}) is no JSON list: {error}"
                print(say, file=sys.stderr)
                return 2
        case ["markdown"]:
            print(markdown(), end="")
        case ["warn"]:
            mark = "::warning::" if os.environ.get("GITHUB_ACTIONS") else "warning: "
            print("".join(f"{mark}{line}\n" for line in warnings(today)), end="")
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
