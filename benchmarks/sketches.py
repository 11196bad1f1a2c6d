"""What a golden loses as a sketch: `python benchmarks/sketches.py`.

Goldens of the shipped models are recorded whole and with 8 to 64 columns; against each, every fault
of the catalogue is planted in the engine. Prints the size of the files, how far the errors of a
right engine are from those of whole arrays, and how many faults are found and placed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from engine.files import find_model
from harness.backends import Request, load_backend
from harness.golden.store import GoldenReference, record
from harness.metrics import relative_error
from harness.reference import Oracle
from harness.scoreboard import board, run_model
from harness.sketch import Sketch
from harness.types import ISOLATED

MODELS = ("tiny-llama", "tiny-gemma3", "tiny-gpt2")
COLUMNS = (0, 8, 16, 32, 64)
GOLDEN = Path(__file__).parents[1] / "golden" / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    models = parser.parse_args().models
    print("| columns | kB | spread of the error | found | right block | false alarms |")
    print("|---|---|---|---|---|---|")
    for columns in COLUMNS:
        with tempfile.TemporaryDirectory() as folder:
            print(row(columns, Path(folder), models), flush=True)


def row(columns: int, folder: Path, models: list[str]) -> str:
    """One line of the table."""
    size, apart, scores = 0, [], []
    for name in models:
        model = folder / "models" / name
        shutil.copytree(GOLDEN / name, model)
        size += record(str(model), "torch", "float32", folder, columns=columns).stat().st_size
        apart += spread(model, columns) if columns else []
        task = {"model": str(model), "candidate": "engine", "dtype": "float32", "seed": 0}
        scores += run_model({**task, "faults": None, "reference": "golden"})
        print(f"{columns} columns, {name}", file=sys.stderr)
    counts = board(scores)
    alarms = counts.equivalent_quiet[1] - counts.equivalent_quiet[0]
    alarms += counts.clean_quiet[1] - counts.clean_quiet[0]
    found, blocks = counts.detected, counts.block
    deviation = f"{np.std(apart):.1%}" if apart else "-"
    kilobytes = size // (1000 * len(models))
    return (
        f"| {columns or 'whole'} | {kilobytes:,} | {deviation} | {found[0]} of {found[1]} "
        f"| {blocks[0]} of {blocks[1]} | {alarms} |"
    )


def spread(model: Path, columns: int) -> list[float]:
    """How far the error of every isolated site is from what it is without a sketch, relatively."""
    files, sketch = find_model(model), Sketch(columns)
    request = Request(files, "float32")
    golden = GoldenReference(files, "float32")
    engine, oracle = load_backend("engine", request), load_backend("torch", request).oracle()
    found = []
    for probe in golden.probes:
        truth = Oracle(oracle, "float32").expected(probe)
        seen: dict = {}
        engine.forward(probe.tokens, seen.__setitem__, feed=truth.feed)
        for site, expected in truth.expected[ISOLATED].items():
            whole = relative_error(seen[site], expected) if site.kind == "block" else 0.0
            if whole:
                small = relative_error(sketch(seen[site]), sketch(expected))
                found.append(small / whole - 1)
    return found


if __name__ == "__main__":
    main()
