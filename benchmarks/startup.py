"""What `harness --help` costs over `python -c pass`: `python benchmarks/startup.py`.

Whole processes, turn by turn. Target: at most 0.25 s more.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15


def main() -> None:
    plain = [sys.executable, "-c", "pass"]
    helped = [sys.executable, "-m", "harness", "--help"]
    times = [(_seconds(plain), _seconds(helped)) for _ in range(ROUNDS + 1)][1:]
    bare, whole = (statistics.median(column) for column in zip(*times, strict=True))
    spread = sorted(w - b for b, w in times)
    print(
        f"python -c pass {bare:.3f} s, harness --help {whole:.3f} s, ratio {whole / bare:.1f}, "
        f"{whole - bare:.3f} s more ({spread[0]:.3f} to {spread[-1]:.3f})"
    )


def _seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
