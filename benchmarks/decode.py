"""Decode and prefill of one sequence: the engine beside mlx-lm, in turns, in one process.

Both continue the same random prompt greedily, with no stop. Printed are the medians of tokens/s and
of the ratios, with the smallest and the largest; a ratio above 1 says that the engine is that much
faster. The first turn of both is not counted: it compiles. Usage:

    python benchmarks/decode.py [--shape 1b ...] [--model NAME ...] [--bits 4] [--dtype bfloat16]
        [--prompt 100] [--tokens 100] [--runs 5] [--device gpu] [--plain]

`--plain` runs the engine's own decoder uncompiled beside its compiled step, in mlx-lm's place.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from sides import Sides, loaded, made

from engine.generate import Timing, generate
from engine.runtime import use_device


@dataclass
class Turn:
    """Tokens per second of both phases, the processor's share of a decoded token, the tokens."""

    prefill: float
    decode: float
    cpu: float
    tokens: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", action="append", default=[])
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--bits", type=int)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device")
    parser.add_argument("--plain", action="store_true")
    for name, count in {"prompt": 100, "tokens": 100, "runs": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    device = use_device(options.device)
    for shape in options.shape:
        _report(made(shape, options.dtype, options.bits), device, options)
    for model in options.model:
        _report(loaded(model), device, options)


def _report(sides: Sides, device: str, options: Any) -> None:
    chance = random.Random(0)
    prompt = [chance.randrange(sides.ours.spec.vocab) for _ in range(options.prompt)]
    turns: dict[str, Callable[[], Turn]] = {"engine": lambda: _ours(sides, prompt, options.tokens)}
    if options.plain:
        turns["uncompiled"] = lambda: _uncompiled(sides, prompt, options.tokens)
    elif sides.mlx_lm is not None:
        turns["mlx-lm"] = lambda: _theirs(sides.mlx_lm, prompt, options.tokens)
    print(f"{sides.name} on {device}, prompt of {options.prompt}, {options.tokens} tokens")
    taken: dict[str, list[Turn]] = {name: [] for name in turns}
    for run in range(options.runs + 1):
        for name, turn in turns.items():
            done = turn()
            if run:
                taken[name].append(done)
    for name, done in taken.items():
        print(
            f"  {name:10} prefill {statistics.median(t.prefill for t in done):9.1f} tokens/s, "
            f"decode {statistics.median(t.decode for t in done):7.1f}, "
            f"processor {1e3 * statistics.median(t.cpu for t in done):.2f} ms a token"
        )
    ours = taken.pop("engine")
    for name, theirs in taken.items():
        same = sum(a == b for a, b in zip(ours[0].tokens, theirs[0].tokens, strict=True))
        print(f"  engine / {name}: ", end="")
        pairs = list(zip(ours, theirs, strict=True))
        for phase in ("prefill", "decode"):
            ratios = [getattr(a, phase) / getattr(b, phase) for a, b in pairs]
            print(
                f"{phase} {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}), ",
                end="",
            )
        print(f"{same} of {options.tokens} tokens the same", flush=True)


def _ours(sides: Sides, prompt: list[int], count: int) -> Turn:
    timing, cpu, tokens = Timing(), [], []
    for token in generate(sides.ours.decoder, prompt, count, timing=timing):
        cpu.append(time.thread_time())
        tokens.append(token)
    assert timing.decode_rate and timing.prompt_rate
    return Turn(timing.prompt_rate, timing.decode_rate, _share(cpu), tokens)


def _uncompiled(sides: Sides, prompt: list[int], count: int) -> Turn:
    steps = sides.ours.decoder._steps
    sides.ours.decoder._steps = _NoSteps()
    try:
        return _ours(sides, prompt, count)
    finally:
        sides.ours.decoder._steps = steps


class _NoSteps:
    """In place of a decoder's compiled steps: there are none."""

    def doubt(self) -> None: ...

    def __call__(self, *arguments: Any) -> None: ...


def _theirs(model: Any, prompt: list[int], count: int) -> Turn:
    from mlx_lm.generate import generate_step

    begin, when, cpu, tokens = time.perf_counter(), [], [], []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=count):
        when.append(time.perf_counter())
        cpu.append(time.thread_time())
        tokens.append(int(token))
    decode = (count - 1) / (when[-1] - when[0])
    return Turn(len(prompt) / (when[0] - begin), decode, _share(cpu), tokens)


def _share(cpu: list[float]) -> float:
    """Seconds of this thread's own a token."""
    return (cpu[-1] - cpu[0]) / (len(cpu) - 1)


if __name__ == "__main__":
    main()
