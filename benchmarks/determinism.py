"""Does what runs beside a request change its answer? `python benchmarks/determinism.py`

The same requests are run alone, all at once, all at once in the opposite order, and by a worker in
another process; in ordinary mode, which is the control, and in deterministic mode. Counted are
tokens and log-probabilities, bit for bit, that are not those of the request alone. What the mode
costs is a ratio of this run. On MLX's CPU build ordinary mode differs in nothing either: its
operations do not depend on the batch.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from engine import load
from engine.runtime import device_class
from engine.sampling import Sampling
from engine.serving.worker import Piece, Request, Worker

Answer = list[tuple[int, float]]  # tokens with their log-probabilities


def main() -> int:
    options = parser().parse_args()
    if options.again:
        print(json.dumps(answers(options, options.again == "deterministic", "all")[0]))
        return 0
    print(f"{options.model} at {options.dtype} on {device_class()}, {options.requests} requests")
    seconds, found = {}, {}
    for mode in ("ordinary", "deterministic"):
        fixed = mode == "deterministic"
        alone, _ = answers(options, fixed, "one by one")
        told = {}
        told["together"], seconds[mode] = answers(options, fixed, "all")
        told["the other way round"], _ = answers(options, fixed, "backwards")
        told["another process"] = elsewhere(mode)
        found[mode] = 0
        for how, others in told.items():
            tokens, logprobs, of = differences(alone, others)
            found[mode] += tokens + logprobs
            print(f"{mode:<13}  {how:<19}  {tokens} of {of} tokens, {logprobs} log-probabilities")
    ratio = seconds["deterministic"] / seconds["ordinary"]
    print(f"deterministic mode takes {ratio:.2f} times as long, all requests at once")
    return int(found["deterministic"] > 0)


def answers(options: Any, deterministic: bool, how: str) -> tuple[list[Answer], float]:
    """Every request's answer, and the seconds that all took."""
    model = load(options.model, dtype=options.dtype)
    asked = requests(options, model.spec.vocab)
    found: list[Answer] = [[] for _ in asked]
    with Worker(model, max_rows=options.rows, deterministic=deterministic) as worker:
        read(worker, asked[:1])  # what is compiled and allocated once
        begin = time.perf_counter()
        if how == "one by one":
            for i, request in enumerate(asked):
                found[i] = read(worker, [request])[0]
        elif how == "all":
            found = read(worker, asked)
        else:
            found = read(worker, asked[::-1])[::-1]
        return found, time.perf_counter() - begin


def read(worker: Worker, asked: Sequence[Request]) -> list[Answer]:
    tickets = [worker.submit(request) for request in asked]
    return [
        [(e.token, e.logprob or 0.0) for e in ticket.events() if isinstance(e, Piece)]
        for ticket in tickets
    ]


def requests(options: Any, vocab: int) -> list[Request]:
    """Prompts of many lengths, some with beginnings in common; every other one is drawn."""
    draw = random.Random(0)
    common = [draw.randrange(3, vocab) for _ in range(options.prompt)]
    found = []
    for i in range(options.requests):
        length = draw.randrange(1, options.prompt)
        rest = [draw.randrange(3, vocab) for _ in range(length)]
        prompt = common[:length] + rest[: 1 + length // 4] if i % 3 else rest
        sampling = Sampling(temperature=0.8, seed=i) if i % 2 else Sampling()
        found.append(
            Request(tuple(prompt), options.tokens, sampling, ignore_eos=True, logprobs=0)
        )
    return found


def elsewhere(mode: str) -> list[Answer]:
    """The same as "all", by a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--again", mode]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [[(token, logprob) for token, logprob in answer] for answer in json.loads(out)]


def differences(alone: list[Answer], others: list[Answer]) -> tuple[int, int, int]:
    """How many tokens, and how many log-probabilities of equal tokens, are others; of how many."""
    tokens = logprobs = of = 0
    for expected, actual in zip(alone, others, strict=True):
        of += len(expected)
        tokens += abs(len(expected) - len(actual))
        for (token, logprob), (other, value) in zip(expected, actual, strict=False):
            tokens += token != other
            logprobs += token == other and logprob != value
    return tokens, logprobs, of


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--model", default="golden/models/tiny-llama")
    found.add_argument("--dtype", default="bfloat16")
    found.add_argument("--requests", type=int, default=24)
    found.add_argument("--rows", type=int, default=8)
    found.add_argument("--prompt", type=int, default=200, help="Most tokens of a prompt's part.")
    found.add_argument("--tokens", type=int, default=40)
    found.add_argument("--again", help=argparse.SUPPRESS)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
