"""Whether every pinned version has a wheel for a platform: `python3 ci/wheels.py PLATFORM PYTHON`.

Resolves with pip's platform options and installs nothing, so that macOS 14 is asked wherever this
runs. pip reads markers as of the machine it runs on; they are therefore read here, and pip gets
bare pins (`--no-deps`: a test holds that constraints.txt is whole). Any Python 3.11 with pip.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Of macOS pip knows the older tags itself; of Linux it has to be told one by one, from glibc 2.35,
# which mlx-cpu asks for, down.
GLIBC = range(35, 16, -1)
PLATFORMS = {
    "macos-14-arm64": ("darwin", ("macosx_14_0_arm64",)),
    "macos-15-arm64": ("darwin", ("macosx_15_0_arm64",)),
    **{
        f"linux-{name}": (
            "linux",
            (*(f"manylinux_2_{minor}_{name}" for minor in GLIBC), f"manylinux2014_{name}"),
        )
        for name in ("x86_64", "aarch64")
    },
}
PYTHONS = ("3.11", "3.14")  # the oldest and the newest that ci/environment.py takes

MARKER = re.compile(r'^(sys_platform|python_version) (==|<) "([^"]+)"$')


def pins(constraints: str, system: str, python: str) -> list[str]:
    """The lines of constraints.txt that hold for a system and a Python, without their markers.

    Raises ValueError for a marker of another form than constraints.txt has today.
    """
    found = []
    for line in constraints.splitlines():
        pin, _, marker = (part.strip() for part in line.partition("#")[0].partition(";"))
        if pin and (not marker or holds(marker, system, python)):
            found.append(pin)
    return found


def holds(marker: str, system: str, python: str) -> bool:
    match = MARKER.match(marker)
    if not match:
        raise ValueError(f"constraints.txt: marker {marker!r} is not understood by ci/wheels.py")
    variable, operator, wanted = match.groups()
    if (variable, operator) == ("sys_platform", "=="):
        return system == wanted
    if (variable, operator) == ("python_version", "<"):
        return [*map(int, python.split("."))] < [*map(int, wanted.split("."))]
    raise ValueError(f"constraints.txt: marker {marker!r} is not understood by ci/wheels.py")


def resolve(
    platform: str, python: str, wanted: list[str], run: Callable[..., object] = subprocess.run
) -> int:
    """pip's exit status for those pins; what it says goes to stderr."""
    tags = PLATFORMS[platform][1]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    command += ["--implementation", "cp", "--python-version", python]
    command += [part for tag in tags for part in ("--platform", tag)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("\n".join(wanted) + "\n")
        command += ["--target", str(Path(folder) / "nothing"), "--requirement", str(file)]
        return run(command).returncode  # type: ignore[attr-defined]


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in PLATFORMS:
        print(f"wheels: PLATFORM PYTHON, of {', '.join(PLATFORMS)}", file=sys.stderr)
        return 2
    platform, python = arguments
    wanted = pins((ROOT / "constraints.txt").read_text(), PLATFORMS[platform][0], python)
    status = resolve(platform, python, wanted)
    if status == 0:
        print(f"{len(wanted)} wheels for {platform}, Python {python}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
