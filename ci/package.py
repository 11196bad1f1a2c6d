"""Build what a release uploads: `python3 ci/package.py TAG` writes a wheel and an sdist to dist/.

TAG must be "v" and the version of pyproject.toml. Builds with the pinned hatchling in an
environment of its own, .cache/package, and touches no other. Standard library only.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / ".cache" / "package"
DIST = ROOT / "dist"


def wrong_tag(tag: str, project: str) -> str:
    """Why a tag does not name the version of this pyproject.toml; "" if it does."""
    version = tomllib.loads(project)["project"]["version"]
    return "" if tag == f"v{version}" else f"the tag {tag!r} is not v{version} of pyproject.toml"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    if problem := wrong_tag(arguments[0], (ROOT / "pyproject.toml").read_text()):
        print(f"package: {problem}", file=sys.stderr)
        return 1
    for old in DIST.glob("*"):
        old.unlink()
    venv.create(BUILD, clear=True, with_pip=True)
    python = str(BUILD / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [*pip, "--constraint", "constraints.txt", "hatchling"],
        [python, "-m", "hatchling", "build", "--directory", str(DIST)],
    ):
        if status := subprocess.run(command, cwd=ROOT).returncode:
            return status
    print("\n".join(sorted(file.name for file in DIST.iterdir())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
