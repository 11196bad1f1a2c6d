"""How long a model takes from its files to the first token, beside reading the bytes of its files.

    python benchmarks/loading.py [--gb 1.0] [--shards 1 4] [--runs 7] [--cold] [--folder DIR]

Writes llamas of random bfloat16 weights, in one safetensors file and split over several, and takes
turns, each in a process of its own with everything imported:

bytes   every file is read into memory, to stay there, with Python's `read`
load    `engine.load`, and all parameters evaluated: in memory and arranged
step    the same, then one token fed to an empty cache and one decoded: it fuses and compiles, which
        is what that token takes longer than the next one, told below

Printed are medians of seconds and of the processor's share, which others on the machine disturb
less, the ratios to the turn's own `bytes`, with the smallest and the largest, and the most memory
MLX held as a share of the model's bytes. `--cold` has the system forget the files' pages before
each turn (posix_fadvise, these files alone); else they are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx

ROOT = Path(__file__).parents[1]
WIDTH, INNER, HEADS, KV_HEADS, VOCAB = 2048, 5632, 32, 8, 32000
TURNS = ("bytes", "load", "step")


def write_model(folder: Path, size: float, shards: int) -> int:
    """A random llama of about `size` bytes; returns the bytes of its files."""
    head = WIDTH // HEADS
    shapes = {
        "input_layernorm": (WIDTH,),
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (KV_HEADS * head, WIDTH),
        "self_attn.v_proj": (KV_HEADS * head, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "post_attention_layernorm": (WIDTH,),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }
    a_block = sum(2 * mx.zeros(shape).size for shape in shapes.values())
    blocks = max(1, round((size - 4 * VOCAB * WIDTH) / a_block))
    names = {"model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH)}
    for i in range(blocks):
        names |= {f"model.layers.{i}.{name}.weight": shape for name, shape in shapes.items()}
    names["model.norm.weight"] = (WIDTH,)
    index: dict[str, str] = {}
    each = -(-len(names) // shards)
    for n in range(shards):
        file = f"model-{n + 1:05}.safetensors" if shards > 1 else "model.safetensors"
        some = list(names.items())[n * each : (n + 1) * each]
        made = {
            name: mx.random.normal(shape, mx.bfloat16, scale=shape[-1] ** -0.5)
            for name, shape in some
        }
        mx.save_safetensors(str(folder / file), made, {"format": "pt"})
        index |= dict.fromkeys(made, file)
        del made
    if shards > 1:
        table = json.dumps({"weight_map": index})
        (folder / "model.safetensors.index.json").write_text(table)
    config = {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": blocks,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def turn(what: str, folder: Path) -> dict[str, float]:
    """One turn, in this process: seconds, those of the processor, the most bytes MLX held."""
    from engine.cache import make_cache
    from engine.model import load

    mx.eval(mx.ones((8,)) + 1)
    mx.reset_peak_memory()
    begin, cpu = time.perf_counter(), time.process_time()

    def taken(peak: int) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - begin,
            "processor": time.process_time() - cpu,
            "peak": peak,
        }

    if what == "bytes":
        held = [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]
        return taken(sum(map(len, held)))
    model = load(folder)
    mx.eval(model.decoder.parameters())
    if what == "load":
        return taken(mx.get_peak_memory())
    cache = make_cache(model.spec)

    def decoded() -> float:
        """Seconds of the processor that one more token took."""
        before = time.process_time()
        mx.eval(model.decoder(mx.array([[1]]), cache))
        return time.process_time() - before

    decoded()
    first, found = decoded(), taken(mx.get_peak_memory())
    return {**found, "made": first - decoded()}


def forget(folder: Path) -> None:
    """Have the system drop the pages of a model's files."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, runs: int, cold: bool) -> dict[str, list[dict[str, float]]]:
    """Every turn so often, after one that does not count."""
    taken: dict[str, list[dict[str, float]]] = {what: [] for what in TURNS}
    for count in range(runs + 1):
        for what in TURNS:
            if cold:
                forget(folder)
            done = subprocess.run(
                [sys.executable, __file__, "--turn", what, "--folder", str(folder)],
                stdout=subprocess.PIPE,
                check=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            if count:
                taken[what].append(json.loads(done.stdout))
    return taken


def report(name: str, size: int, taken: dict[str, list[dict[str, float]]]) -> None:
    def times_bytes(what: str, of: str, unit: str) -> str:
        pairs = zip(taken[what], taken["bytes"], strict=True)
        ratios = sorted(ours[of] / theirs[unit] for ours, theirs in pairs)
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"

    print(f"{name}, {size / 1e9:.2f} GB")
    for what, turns in taken.items():
        seconds, processor = (
            statistics.median(each[unit] for each in turns) for unit in ("seconds", "processor")
        )
        peak = max(each["peak"] for each in turns) / size
        print(
            f"  {what:6}{seconds:7.3f} s, {times_bytes(what, 'seconds', 'seconds')} times bytes; "
            f"processor {processor:.3f} s, {times_bytes(what, 'processor', 'processor')} times; "
            f"peak {peak:.2f} of the model",
            flush=True,
        )
    made = times_bytes("step", "made", "processor")
    print(f"  to fuse and compile: processor {made} times bytes", flush=True)


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to write, instead of the system's")
    parser.add_argument("--turn", choices=TURNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(turn(options.turn, options.folder)))
        return
    for shards in options.shards:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            size = write_model(Path(folder), options.gb * 1e9, shards)
            taken = measure(Path(folder), options.runs, options.cold)
            state = "read from disk" if options.cold else "in the page cache"
            report(f"{shards} file{'s' if shards > 1 else ''}, {state}", size, taken)


if __name__ == "__main__":
    main()
