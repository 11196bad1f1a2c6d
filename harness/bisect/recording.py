"""One candidate, run in the environment of a release: a process of its own that leaves a trace.

Whatever it does to itself, crash included, is an answer and nothing worse.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import harness

from ..executors.bounded import wait_bounded
from .environments import CannotRun, Environment

SECONDS = 600.0  # of one run


@dataclass(frozen=True)
class Task:
    """What every release is asked to compute: a candidate on the probes of a file.

    `seconds` and `memory` (GB, None for no limit) are what one run may take.
    """

    package: str
    model: str
    candidate: str
    dtype: str
    device: str | None = None
    revision: str | None = None
    seconds: float = SECONDS
    memory: float | None = None


Record = Callable[[Environment, str, Path, Path, "int | None"], None]


def recorder(task: Task) -> Record:
    """`record(environment, release, probes, out, inside)` for a task; it raises CannotRun."""

    most = math.inf if task.memory is None else task.memory * 1e9

    def record(
        environment: Environment, release: str, probes: Path, out: Path, inside: int | None
    ) -> None:
        told = {
            "package": task.package, "release": release, "model": task.model,
            "candidate": task.candidate, "dtype": task.dtype, "device": task.device,
            "revision": task.revision, "on": str(probes), "out": str(out), "inside": inside,
        }  # fmt: skip
        # -P: not the folder it is called in, which may hold anything's name.
        command = [str(environment.python), "-P", "-m", "harness.bisect.child", json.dumps(told)]
        with tempfile.TemporaryFile() as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
                env=_variables(),
            )  # fmt: skip
            why = wait_bounded(process, task.seconds, most)
            stderr.seek(0)
            lines = stderr.read().decode(errors="replace").strip().splitlines()
        if why is None and process.returncode > 0:
            why = lines[-1] if lines else f"its process ended with {process.returncode}"
        elif why is None and process.returncode < 0:
            why = f"its process ended with {process.returncode}"
        if why is not None:
            raise CannotRun(" ".join(why.split())[:300])

    return record


def _variables() -> dict[str, str]:
    """This process's, and this very harness and engine, wherever they stand."""
    code = str(Path(harness.__file__).parents[1])
    # Installed as a package they stand among packages, which must not come before a release's own.
    first = [] if Path(code).name in ("site-packages", "dist-packages") else [code]
    path = [*first, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return {**variables, "PYTHONPATH": os.pathsep.join(path)} if path else variables
