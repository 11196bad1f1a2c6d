"""What a comparison costs over the same work done bare: `python benchmarks/bare.py [MODEL ...]`.

The bare script imports the same libraries, loads both models and runs each forward once per probe;
`harness compare` does all its checks. Both are whole processes, turn by turn; the ratio of the
medians is printed with its spread. Target: at most 1.3.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
MODELS = ("tiny-llama", "tiny-gemma3", "tiny-gpt2")
BARE = """
import json, sys
import mlx.core as mx
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from engine.model import load
from harness.backends import Request
from harness.backends.torch import load as load_torch
from engine.files import find_model
files = find_model(sys.argv[1])
probes = json.loads(open(sys.argv[2]).read())
candidate = load(files, dtype="float32")
reference = load_torch(Request(files, "float32"))
AutoTokenizer.from_pretrained(str(files.folder)); candidate.tokenizer
for tokens in probes:
    reference.forward(tokens)
    mx.eval(candidate.decoder(mx.array([tokens])))
"""


def main() -> None:
    root = Path(__file__).parents[1]
    for name in sys.argv[1:] or MODELS:
        model = root / "golden" / "models" / name if "/" not in name else Path(name)
        with tempfile.TemporaryDirectory() as folder:
            probes = Path(folder) / "probes.json"
            probes.write_text(json.dumps(_probes(model)))
            bare = [sys.executable, "-c", BARE, str(model), str(probes)]
            whole = [sys.executable, "-m", "harness", "compare", "--model", str(model)]
            times = [(_seconds(bare, root), _seconds(whole, root)) for _ in range(ROUNDS + 1)][1:]
        ratios = sorted(w / b for b, w in times)
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        print(
            f"{name}: bare {medians[0]:.2f} s, compare {medians[1]:.2f} s, "
            f"ratio {medians[1] / medians[0]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


def _probes(model: Path) -> list[list[int]]:
    from engine.files import find_model
    from harness.golden.store import GoldenReference

    return [list(probe.tokens) for probe in GoldenReference(find_model(model), "float32").probes]


def _seconds(command: list[str], root: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
