"""Run one leg of `matrix.py`, as CI does: `python3 ci/leg.py NAME [--here] [--only CHECK]`.

Makes the environment (`ci/environment.py`; with `--here` takes that of this Python), runs the
steps of the leg's checks one after the other, and writes to `.cache/legs/NAME` (or `--out`) what
`summary.py` says. A step that fails does not stop the next; a set-up that fails does.
Exit status: 0 all passed, 1 not, 2 there is no such leg. Needs Python 3.11 and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from checks import CHECKS, ROOT, Place, Step, Wrong, beside, set_up
from matrix import LEGS, by_name
from summary import Result, write

LOG_LINES = 60  # of a failed step, in the report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run one leg of CI.")
    parser.add_argument("name", choices=[leg.name for leg in LEGS], metavar="NAME")
    parser.add_argument("--here", action="store_true", help="in the environment of this Python")
    parser.add_argument("--only", choices=list(CHECKS), help="one check of the leg")
    parser.add_argument("--out", type=Path, help="default .cache/legs/NAME")
    asked = parser.parse_args(arguments)
    leg = by_name(asked.name)
    if asked.only and asked.only not in leg.checks:
        parser.error(f"{leg.name} has no check {asked.only}: one of {', '.join(leg.checks)}")
    out = (asked.out or ROOT / ".cache" / "legs" / leg.name).resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "verdict.json").unlink(missing_ok=True)  # of an earlier run
    place = Place(leg, out, asked.here)
    try:
        results = list(run(place, (asked.only,) if asked.only else leg.checks))
    except KeyboardInterrupt:
        print(f"{leg.name}: interrupted", file=sys.stderr)
        return 130
    content = write(out, leg.name, results)
    print(f"{leg.name}: {content['verdict'].upper()}  {out}")
    return 0 if content["verdict"] == "pass" else 1


def run(place: Place, checks: tuple[str, ...]) -> Iterator[Result]:
    """The results of all steps, in order."""
    broken = ""
    for step in set_up(place):
        result = _skipped(step, broken) if broken else run_step(step, place)
        broken = broken or (step.name if result.verdict != "pass" else "")
        yield result
    for step in (step for check in checks for step in CHECKS[check](place)):
        yield _skipped(step, broken) if broken else run_step(step, place)


def _skipped(step: Step, because: str) -> Result:
    return Result(step.name, "skip", 0.0, f"{because} failed")


def run_step(step: Step, place: Place) -> Result:
    """Run a step, show what it prints, and judge it."""
    print(f"--- {step.name}: {' '.join(step.command)}", flush=True)
    if step.report:
        step.report.unlink(missing_ok=True)  # of an earlier run
    begin = time.monotonic()
    status, log, late = execute(step.command, step.seconds, variables(place))
    seconds = time.monotonic() - begin
    verdict, seen = "pass", ""
    if late:
        verdict, seen = "fail", f"stopped after {step.seconds} s"
    elif status:
        verdict, seen = "fail", f"exit status {status}"
    elif step.judge:
        try:
            seen = step.judge(log)
        except (Wrong, OSError, ValueError, KeyError) as error:
            verdict, seen = "fail", f"{error}"
    tail = "\n".join(log.splitlines()[-LOG_LINES:])
    print(f"--- {step.name}: {verdict} in {seconds:.1f} s  {seen}", flush=True)
    return Result(step.name, verdict, seconds, seen, tail, _comparison(step))


def _comparison(step: Step) -> dict | None:
    """The verdict that the step wrote; none where it came to nothing."""
    try:
        return json.loads(step.report.read_text()) if step.report else None
    except (OSError, ValueError):
        return None


def variables(place: Place) -> dict[str, str]:
    """This environment, with what stands beside it first on the path, and with limits where CI
    keeps them."""
    found = dict(os.environ)
    if folders := beside(place):
        path = [*map(str, folders), *filter(None, [found.get("PYTHONPATH")])]
        found["PYTHONPATH"] = os.pathsep.join(path)
    if place.leg.device == "metal":
        found.setdefault("MLX_PARITY_LIMITS", str(ROOT / ".cache" / "limits"))
    return found


def execute(
    command: tuple[str, ...], seconds: int, environment: dict[str, str]
) -> tuple[int, str, bool]:
    """Exit status, all output, and whether time ran out: it and its children are ended then."""
    late = threading.Event()
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:

        def stop() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, lambda: (late.set(), stop()))
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
            process.wait()
        except KeyboardInterrupt:
            stop()  # a session of its own does not hear the terminal
            raise
        finally:
            timer.cancel()
    return process.returncode, "".join(lines), late.is_set()


if __name__ == "__main__":
    sys.exit(main())
