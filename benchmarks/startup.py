"""What --help of both programs costs over `python -c pass`: `python benchmarks/startup.py`.

Whole processes, turn by turn. Target: at most 0.25 s more.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15
PROGRAMS = ("harness", "engine")


def main() -> None:
    commands = [["-c", "pass"], *(["-m", program, "--help"] for program in PROGRAMS)]
    rounds = [[_seconds(command) for command in commands] for _ in range(ROUNDS + 1)][1:]
    bare, *wholes = (statistics.median(column) for column in zip(*rounds, strict=True))
    for i, (program, whole) in enumerate(zip(PROGRAMS, wholes, strict=True), 1):
        spread = sorted(each[i] - each[0] for each in rounds)
        print(
            f"python -c pass {bare:.3f} s, {program} --help {whole:.3f} s, "
            f"ratio {whole / bare:.1f}, {whole - bare:.3f} s more "
            f"({spread[0]:.3f} to {spread[-1]:.3f})"
        )


def _seconds(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
