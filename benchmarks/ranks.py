"""Speed and memory of a made model in one process and over several ranks.

    python benchmarks/ranks.py --width 4096 --blocks 32 --mlp 14336 --heads 32 --kv-heads 8 \
        --vocab 128256 [--prompt-tokens 128] [--tokens 64] [--runs 3] --ranks 1,2

Random weights of that shape are written below --folder, one file a block, and read by every count
of ranks in processes of their own: over NCCL where MLX is a CUDA build, over TCP on loopback else.
Each rank tells what its share takes, what MLX held at most, and how much of the files the system
fetched for it, having been told to forget them before: what one rank has fetched, another has too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine.launch import Started, end_with_starter, started


def main() -> None:
    options = parsed()
    if options.folder_of_rank is not None:
        be_rank(options)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = write(Path(folder), options)
        print(f"{size / 1e9:.2f} GB of weights, {options.dtype}", flush=True)
        for ranks in map(int, options.ranks.split(",")):
            forget(Path(folder))
            show(ranks, measured(ranks, folder))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, usual in (
        ("width", 512), ("blocks", 8), ("mlp", 1536), ("heads", 8), ("kv-heads", 4),
        ("vocab", 8192), ("prompt-tokens", 128), ("tokens", 64), ("runs", 3),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--ranks", default="1,2", help="counts, one after the other")
    parser.add_argument("--folder", type=Path, help="where there is room; default the system's own")
    parser.add_argument("--folder-of-rank", help=argparse.SUPPRESS)
    return parser.parse_args()


def write(folder: Path, options: argparse.Namespace) -> int:
    """A llama of the wanted shape, one file a block; the bytes of its weights."""
    import mlx.core as mx

    from engine.architectures import decoder_spec
    from engine.config import Config
    from engine.decoder import Decoder
    from engine.model import DTYPES
    from engine.weights import write_weights
    from engine.weights.arrange import rows_of

    config = {
        "model_type": "llama", "hidden_size": options.width, "num_hidden_layers": options.blocks,
        "intermediate_size": options.mlp, "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads, "vocab_size": options.vocab,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "max_position_embeddings": 8192,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    spec = decoder_spec(Config(config))
    sources = {target: row.source for row in rows_of(spec) for target in row.targets}
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in Decoder(spec).shapes().items():
        module, _, kind = path.rpartition(".")
        file = module.split(".")[1] if module.startswith("blocks.") else "rest"
        files.setdefault(file, {})[f"{sources[module]}.{kind}"] = shape
    total = 0
    for file, shapes in files.items():
        tensors = {}
        for name, shape in shapes.items():
            made = mx.random.normal(shape) * shape[-1] ** -0.5 if len(shape) > 1 else mx.ones(shape)
            tensors[name] = made.astype(DTYPES[options.dtype])
        write_weights(folder / f"model-{file}.safetensors", tensors)
        total += sum(array.nbytes for array in tensors.values())
        mx.clear_cache()
    return total


def forget(folder: Path) -> None:
    """Have the system keep nothing of the files in memory, so that what is read is counted."""
    for path in folder.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measured(ranks: int, folder: str) -> dict:
    """What rank 0 of so many prints; one is this program without any group."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder-of-rank", folder]
    if ranks == 1:
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)
    with Started(command, ranks, stdout=subprocess.PIPE) as processes:
        with processes.processes[0].stdout as stream:
            output = stream.read()
        if status := processes.wait():
            raise SystemExit(status)
    return json.loads(output)


def be_rank(options: argparse.Namespace) -> None:
    """Load, run, and print the figures of all ranks on rank 0."""
    import mlx.core as mx

    from engine.backend import open_model
    from engine.bench import bench
    from engine.files import find_model
    from engine.ranks import join

    end_with_starter()
    ranks = join() if started() else None
    files = find_model(options.folder_of_rank)
    before, begin = bytes_read(), time.perf_counter()
    running = open_model(files, "mlx", ranks=ranks)
    held = mx.get_active_memory() if ranks else sum(p.stat().st_size for p in files.weights)
    seconds, read = time.perf_counter() - begin, bytes_read() - before
    peak_of_load = mx.get_peak_memory()
    figures = bench(running, options.prompt_tokens, options.tokens, options.runs)
    exchange = {} if ranks is None else exchanges(options.width)
    mine = (held, peak_of_load, running.peak_memory(), read)
    every = [[n] for n in mine] if ranks is None else [ranks.bytes_each(n) for n in mine]
    if ranks is None or ranks.rank == 0:
        names = ("share", "peak of load", "peak", "read")
        speeds = {"prefill": figures.prefill.median, "decode": figures.decode.median}
        on = {"device": running.device, "seconds of load": seconds, "exchange": exchange}
        print(json.dumps({**on, **speeds, **dict(zip(names, every, strict=True))}), flush=True)


def exchanges(width: int) -> dict[str, float]:
    """Milliseconds that a token's sum takes, as the engine does it and as MLX's own."""
    import mlx.core as mx

    from engine.ranks import Ranks

    ranks, times = Ranks(mx.distributed.init()), 50
    found = {}
    for name, total in (("gather and add", ranks.total), ("all_sum", mx.distributed.all_sum)):
        for run in range(times + 5):
            if run == 5:
                begin = time.perf_counter()
            mx.eval(total(mx.full((1, 1, width), float(run), mx.bfloat16)))
        found[name] = (time.perf_counter() - begin) / times * 1e3
    return found


def bytes_read() -> int:
    """What this process has had fetched from disks; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def show(ranks: int, found: dict) -> None:
    loaded = f"load {found['seconds of load']:.1f} s" if ranks > 1 else "load when first used"
    print(
        f"{ranks} ranks on {found['device']}: prefill {found['prefill']:.1f}, "
        f"decode {found['decode']:.1f} tokens/s; {loaded}"
    )
    for name in ("share", "peak of load", "peak", "read"):
        each = ", ".join(f"{n / 1e6:.1f}" for n in found[name])
        print(f"    {name:<13}{each} MB", flush=True)
    for name, milliseconds in found["exchange"].items():
        print(f"    {name:<15}{milliseconds:.3f} ms for a token", flush=True)


if __name__ == "__main__":
    main()
