"""What a comparison costs over the loads and forwards that it needs, run bare.

    python benchmarks/cost.py                  the golden models, live torch, float32
    python benchmarks/cost.py deep words       random models of 99 and 143 million parameters
    python benchmarks/cost.py --reference golden; --dtype bfloat16; --processes; --table; --rest

One comparison is watched first: every load and forward of both sides is written down, and those
that an earlier one would have served are named. What is left is what the checks need
(docs/COST.md says what that means). Then the needed loads and forwards alone and the comparison run
turn by turn, in this process, or with --processes in fresh ones, imports and all; the ratio of the
medians is printed, with the smallest and the largest of single turns. Target: at most 1.2.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLX_ENABLE_TF32", "0")

from _ledger import CANDIDATE, ORACLE, TWIN, Forward, Ledger, Load, watching
from streaming import LLAMA_7B, write_model

if TYPE_CHECKING:
    from harness.types import Verdict

ROOT = Path(__file__).parents[1]
GOLDEN = ("tiny-llama", "tiny-gemma3", "tiny-gpt2")
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 4}
# 99 and 143 million parameters, stored in bfloat16: one where blocks, one where logits dominate.
RANDOM = {
    "deep": (8, HEADS | {"hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 4096}),
    "words": (4, HEADS | {"hidden_size": 512, "intermediate_size": 1408, "vocab_size": 128256}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=GOLDEN)
    parser.add_argument("--reference", default="torch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kinds", help="of probes, with commas between them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", action="store_true", help="fresh ones, turn by turn")
    parser.add_argument("--table", action="store_true", help="what serves which check")
    parser.add_argument("--rest", action="store_true", help="what takes the time beside forwards")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare(Path(options.models[0]), *_read(options.bare))
        return
    with tempfile.TemporaryDirectory(prefix="mlx-parity-") as folder:
        for name in options.models:
            report(name, _folder(name, Path(folder)), options)


def report(name: str, model: Path, options: argparse.Namespace) -> None:
    """Watch one comparison, then time it, and print what was found."""
    ledger, verdict = _watched(model, options, Ledger())
    loads, forwards = ledger.needed()
    run, twice = ledger.forwards, ledger.twice()
    print(
        f"{name}, {options.reference}, {options.dtype}: {verdict.verdict}; {len(ledger.loads)} "
        f"loads, {len(run)} forwards of {sum(f.length for f, *_ in run)} tokens, "
        f"{len(twice)} in vain"
    )
    for each, check, before in twice:
        print(f"    in vain: {_described(each)}, for {check}, as before for {before}")
    if options.table:
        _print_table(ledger)
    if options.processes:
        pairs = _in_processes(model, options, loads, forwards)
    else:
        pairs = [
            (_timed(lambda: bare(model, loads, forwards)), _timed(lambda: _compare(model, options)))
            for _ in range(options.rounds)
        ]
    for i, what in enumerate(("elapsed", "processor")):
        columns = [[each[i] for each in column] for column in zip(*pairs, strict=True)]
        medians = [statistics.median(column) for column in columns]
        ratios = sorted(w / b for b, w in zip(*columns, strict=True))
        print(
            f"    {what}: bare {medians[0]:.2f} s, compare {medians[1]:.2f} s, ratio "
            f"{medians[1] / medians[0]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    if options.rest:
        _print_rest(_watched(model, options, Ledger(digests=False))[0])
    sys.stdout.flush()


def bare(model: Path, loads: Sequence[Load], forwards: Sequence[Forward]) -> None:
    """The loads and forwards alone: nothing is watched, fed or judged."""
    from engine.files import find_model
    from harness.backends import Request, load_backend

    files = find_model(model)
    sides: dict[tuple[str, str], Any] = {}
    for dtype in dict.fromkeys(load.dtype for load in loads):
        for load in (load for load in loads if load.dtype == dtype):
            if load.side == ORACLE:
                sides[ORACLE, load.model] = sides[TWIN, dtype].oracle()
            else:
                name = "engine" if load.side == CANDIDATE else "torch"
                sides[load.side, dtype] = load_backend(name, Request(files, dtype))
        for run in (run for run in forwards if run.dtype == dtype):
            side = sides[run.side, run.model if run.side == ORACLE else dtype]
            if run.mode == "batch":
                side.batch(run.tokens, run.chunks)
            elif run.mode == "greedy":
                side.greedy(run.tokens[0], run.count)
            else:
                side.forward(run.tokens[0], chunks=run.chunks)


def _compare(model: Path, options: argparse.Namespace, **more: Any) -> Verdict:
    from harness.judge import compare  # here, so that what runs bare does not import it

    kinds = options.kinds and options.kinds.split(",")
    return compare(model, "engine", options.reference, options.dtype, kinds=kinds, **more)


def _watched(model: Path, options: argparse.Namespace, ledger: Ledger) -> tuple[Ledger, Verdict]:
    """A comparison that is written down."""
    from harness.backends.engine import EngineBackend

    kinds: list[type] = [EngineBackend]
    if options.reference != "golden":
        from harness.backends.torch import TorchBackend

        kinds.append(TorchBackend)
    with watching(ledger, *kinds):
        verdict = _compare(model, options, progress=ledger.tell)
    ledger.end()
    return ledger, verdict


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Elapsed seconds, and those of the processor, of all threads."""
    elapsed, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - elapsed, time.process_time() - used


def _in_processes(
    model: Path, options: argparse.Namespace, loads: Sequence[Load], forwards: Sequence[Forward]
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "needed.json"
        path.write_text(json.dumps([[asdict(each) for each in of] for of in (loads, forwards)]))
        alone = [__file__, str(model), "--bare", str(path)]
        whole = ["-m", "harness", "compare", "--model", str(model)]
        whole += ["--reference", options.reference, "--dtype", options.dtype]
        whole += ["--kinds", options.kinds] if options.kinds else []
        return [(_process(alone), _process(whole)) for _ in range(options.rounds)]


def _process(arguments: Sequence[str]) -> tuple[float, float]:
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begin, used


def _read(path: Path) -> tuple[list[Load], list[Forward]]:
    loads, forwards = json.loads(path.read_text())
    return [Load(**each) for each in loads], [Forward(**each) for each in forwards]


def _folder(name: str, scratch: Path) -> Path:
    if name in RANDOM:
        layers, shape = RANDOM[name]
        return write_model(scratch / name, layers, LLAMA_7B | shape)
    return ROOT / "golden" / "models" / name if name in GOLDEN else Path(name)


def _described(each: Forward | Load) -> str:
    if isinstance(each, Load):
        return f"load of {each.side}, {each.dtype}"
    watched = ", watched" if each.watched else ""
    return f"{each.side} {each.dtype}, {each.mode}{watched}, {each.length} tokens"


def _print_table(ledger: Ledger) -> None:
    """Loads and forwards by side and way, and for which checks they were run."""
    rows: dict[tuple[str, ...], list[Any]] = defaultdict(lambda: [0, 0, 0.0, {}])
    for each, check, seconds in (*ledger.loads, *ledger.forwards):
        way = "load" if isinstance(each, Load) else each.mode
        way += ", watched" if isinstance(each, Forward) and each.watched else ""
        row = rows[each.side, each.dtype, way]
        row[0] += 1
        row[1] += 0 if isinstance(each, Load) else each.length
        row[2] += seconds
        row[3][check] = None
    print("    | side | dtype | way | runs | tokens | seconds | for |\n    |" + "---|" * 7)
    for (side, dtype, way), (runs, tokens, seconds, checks) in rows.items():
        what = ", ".join(checks)
        print(f"    | {side} | {dtype} | {way} | {runs} | {tokens} | {seconds:.2f} | {what} |")


def _print_rest(ledger: Ledger) -> None:
    """Seconds of the processor for each stage beside its loads and forwards; how many of those in
    observers."""
    spent: dict[str, float] = defaultdict(float)
    for _, stage, seconds in (*ledger.loads, *ledger.forwards):
        spent[stage] += seconds
    print("    | stage | seconds | loads, forwards | rest | measuring |\n    |" + "---|" * 5)
    for stage, whole in ledger.stages.items():
        rest, inner = whole - spent[stage], ledger.measured[stage]
        print(f"    | {stage} | {whole:.3f} | {spent[stage]:.3f} | {rest:.3f} | {inner:.3f} |")
    whole, inner = sum(ledger.stages.values()), sum(ledger.measured.values())
    both = sum(spent.values())
    print(f"    | all | {whole:.3f} | {both:.3f} | {whole - both:.3f} | {inner:.3f} |")


if __name__ == "__main__":
    main()
