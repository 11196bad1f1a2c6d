"""What runs in a release's environment: one candidate, traced; and proof that it was this release.

`python -m harness.bisect.child TASK`, a JSON object. One line on stderr and exit status 2 for what
the user can mend, as everywhere.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

from packaging.version import Version

from engine.errors import EngineError


def main() -> int:
    task = json.loads(sys.argv[1])
    try:
        from ..tracing import write_trace

        write_trace(
            task["model"], task["candidate"], Path(task["out"]), task["dtype"],
            on=Path(task["on"]), device=task["device"], revision=task["revision"],
            inside=task["inside"],
        )  # fmt: skip
        check_origin(task["package"], task["release"])
    except EngineError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def check_origin(package: str, release: str) -> None:
    """Raise EngineError unless all that was imported of a package is of one release, this one.

    The environment lies over another, in which there may be modules that this release lacks.
    """
    found = importlib.metadata.distribution(package)
    if Version(found.version) != Version(release):
        raise EngineError(f"{package} {found.version} is what Python finds, not {release}")
    root = Path(str(found.locate_file(""))).resolve()
    files = [file for file in found.files or () if file.suffix in (".py", ".so")]
    names = {file.parts[0].partition(".")[0] for file in files}
    loaded = False
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path is None or name.partition(".")[0] not in names:
            continue
        loaded = True
        if not Path(path).resolve().is_relative_to(root):
            raise EngineError(f"{name} came from {path}, and {package} {release} is in {root}")
    if not loaded:
        raise EngineError(f"the candidate imports nothing of {package}")


if __name__ == "__main__":
    sys.exit(main())
