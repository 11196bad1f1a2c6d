"""`python -m engine` and the console script `engine`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from .cli import app
    from .console import run

    sys.exit(run(app, "engine"))


if __name__ == "__main__":
    main()
