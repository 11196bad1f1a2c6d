"""Calibrate this machine's GPU unless its limits are there: `python -m ci.limits`.

A leg on Metal is judged by the limits of its own class of device, never by a stand-in. Where the
harness ships no table of the class, `harness calibrate` makes one, in the folder that
MLX_PARITY_LIMITS names; there it also goes on if it was interrupted. Needs MLX and the harness.
"""

from __future__ import annotations

import subprocess
import sys

SEEDS = 3  # the fewest of docs/METHOD.md that gave every row its 59 runs


def main() -> int:
    from harness.environment import device_class
    from harness.limits import find_limits, own_folder

    name = device_class("metal")
    if find_limits(name).calibrated:
        print(f"limits of {name} are there")
        return 0
    folder = own_folder()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "harness", "calibrate", "--device", "gpu"]
    command += ["--seeds", str(SEEDS), "--resume", str(folder / f"{name}.results")]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
