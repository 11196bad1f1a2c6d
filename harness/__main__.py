"""`python -m harness` and the console script `harness`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from engine.console import run

    from .cli import app

    sys.exit(run(app, "harness"))


if __name__ == "__main__":
    main()
