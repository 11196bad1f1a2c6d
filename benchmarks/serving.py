"""Throughput of the worker: 8 requests at once beside 8 after another and mlx-lm's batches.

All sides make as many tokens of the same prompts, greedily, with no stop; the worker also makes
their text. They take turns in one process, so that what disturbs one disturbs all; medians of the
ratios, with the smallest and largest. Usage:

    python benchmarks/serving.py [--model NAME ...] [--shape 1b ...] [--bits 4]
        [--dtype bfloat16] [--requests 8] [--tokens 100] [--runs 5] [--device gpu]
        [--deterministic] [--no-sequential]

A ratio above 1 says that the worker is that much faster.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from sides import Sides, loaded, made

from engine.generate import generate
from engine.runtime import use_device
from engine.serving.worker import Piece, Request, Worker

Tokens = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--shape", action="append", default=[], help="a model made at random")
    parser.add_argument("--bits", type=int, help="of a made one, packed")
    parser.add_argument("--dtype", default="bfloat16", help="of a made one")
    parser.add_argument("--device")
    for name, count in {"requests": 8, "tokens": 100, "runs": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--sequential", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    device = use_device(options.device)
    names = options.model or ([] if options.shape else ["tiny-llama", "tiny-gemma3", "tiny-gpt2"])
    print(f"on {device}, {options.requests} requests of {options.tokens} tokens")
    for shape in options.shape:
        _report(made(shape, options.dtype, options.bits), options)
    for name in names:
        _report(loaded(name), options)


def _report(both: Sides, options: Any) -> None:
    print(both.name)
    model = both.ours
    chance = random.Random(0)
    prompts = [
        tuple(chance.randrange(model.spec.vocab) for _ in range(chance.randint(8, 100)))
        for _ in range(options.requests)
    ]
    worker = Worker(
        model,
        max_rows=options.requests,
        prefix_cache_bytes=0,
        deterministic=options.deterministic,
    )

    def together() -> Tokens:
        tickets = [worker.submit(Request(p, options.tokens, ignore_eos=True)) for p in prompts]
        return [[e.token for e in t.events() if isinstance(e, Piece)] for t in tickets]

    def sequential() -> Tokens:
        return [list(generate(model.decoder, prompt, options.tokens)) for prompt in prompts]

    sides: dict[str, Callable[[], Tokens]] = {"worker": together}
    if options.sequential:
        sides["one after another"] = sequential
    if both.mlx_lm is not None:
        sides["mlx-lm's batches"] = _mlx_lm(both.mlx_lm, prompts, options.tokens)
    with worker:
        expected = sequential()
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for run in range(options.runs + 1):
            for name, side in sides.items():
                begin = time.perf_counter()
                made = side()
                if run:  # the first warms up
                    taken[name].append(time.perf_counter() - begin)
                else:
                    same = sum(a == b for a, b in zip(made, expected, strict=True))
                    print(f"  {name}: {same} of {len(expected)} answers as one after another")
    ours = taken.pop("worker")
    rate = options.requests * options.tokens / statistics.median(ours)
    print(f"  worker: {rate:.0f} tokens/s")
    for name, theirs in taken.items():
        ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
        print(
            f"  worker against {name}: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def _mlx_lm(model: Any, prompts: list[tuple[int, ...]], count: int) -> Callable[[], Tokens]:
    """mlx-lm's BatchGenerator."""
    from mlx_lm.generate import BatchGenerator

    def batches() -> Tokens:
        size = len(prompts)
        generator = BatchGenerator(
            model, max_tokens=count, completion_batch_size=size, prefill_batch_size=size
        )
        ids = generator.insert([list(prompt) for prompt in prompts])
        made: dict[int, list[int]] = {id: [] for id in ids}
        while responses := generator.next_generated():
            for response in responses:
                made[response.uid].append(response.token)
        generator.close()
        return [made[id] for id in ids]

    return batches


if __name__ == "__main__":
    main()
