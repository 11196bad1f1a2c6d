"""Whether a request's bits depend on what runs beside it, in both modes of the worker.

The same requests run alone, all together, in another order, and once more in a fresh process. Every
token and log-probability is compared with the run alone. The ordinary mode is the control: where it
differs, the deterministic one has something to prove (MLX's CPU build differs in neither). The cost
is the time of all together in both modes, in turns, in this process. Usage:

    python benchmarks/determinism.py [--model NAME ...] [--device gpu] [--dtype bfloat16]
        [--requests 16] [--tokens 64] [--rows 8] [--chunk 64] [--runs 3]

Exits 1 where the deterministic mode differs from itself.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from engine.model import load
from engine.runtime import use_device
from engine.sampling import Sampling
from engine.serving.worker import Piece, Request, Worker

MODES = {"ordinary": False, "deterministic": True}
Answer = list[list[Any]]  # of one request: token, log-probability, those of the best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append")
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    for name, count in {
        "requests": 16, "tokens": 64, "rows": 8, "chunk": 64, "runs": 3
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # in the fresh process: the mode
    options = parser.parse_args()
    device = use_device(options.device)
    if options.alone:
        print(json.dumps(_Runs(options.model[0], options).answers(options.alone)["alone"]))
        return
    differs = False
    for name in options.model or ["tiny-llama", "tiny-gemma3", "tiny-gpt2"]:
        print(f"{name} on {device}, {options.dtype or 'as stored'}", flush=True)
        differs |= _report(name, options)
    sys.exit(1 if differs else 0)


def _report(name: str, options: Any) -> bool:
    """Print the lines of one model; return whether the deterministic mode differs."""
    runs, differs = _Runs(name, options), False
    for mode in MODES:
        answers = runs.answers(mode)
        answers["restarted"] = _restarted(name, mode, options)
        expected = answers.pop("alone")
        for what, found in answers.items():
            tokens, values, total = _differences(expected, found)
            differs |= MODES[mode] and bool(tokens or values)
            print(
                f"  {mode:13} {what:9} of {total} tokens {tokens} differ, and {values} "
                "log-probabilities",
                flush=True,
            )
    seconds = runs.seconds()
    ratios = [a / b for a, b in zip(seconds["deterministic"], seconds["ordinary"], strict=True)]
    print(
        f"  cost: {statistics.median(ratios):.2f} times the ordinary mode's time "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} runs)",
        flush=True,
    )
    return differs


class _Runs:
    """One model and its requests: prompts of any length, some that begin alike, half drawn."""

    def __init__(self, name: str, options: Any) -> None:
        self._options, self._model = options, load(name, dtype=options.dtype)
        chance, vocab = random.Random(0), self._model.spec.vocab
        room = self._model.spec.learned_positions or self._model.spec.max_length
        longest = max(2, min(4 * options.chunk, room - options.tokens))
        shared = [chance.randrange(vocab) for _ in range(longest // 2)]
        self._requests = []
        for n in range(options.requests):
            own = [chance.randrange(vocab) for _ in range(chance.randint(1, longest // 2))]
            self._requests.append(
                Request(
                    tuple([*shared, *own] if n % 3 == 0 else own),
                    options.tokens,
                    Sampling(temperature=1.0, seed=n) if n % 2 else Sampling(),
                    ignore_eos=True,
                    logprobs=2,
                )
            )

    def answers(self, mode: str) -> dict[str, list[Answer]]:
        """What the requests get alone, together and in another order, each with a new worker."""
        everyone = range(len(self._requests))
        shuffled = random.Random(1).sample(everyone, len(everyone))
        orders = {"together": list(everyone), "shuffled": shuffled}
        found = {}
        with self._worker(mode, prefix_cache_bytes=0) as worker:
            found["alone"] = [_answer(worker.submit(request)) for request in self._requests]
        for what, order in orders.items():
            with self._worker(mode) as worker:
                tickets = {n: worker.submit(self._requests[n]) for n in order}
                found[what] = [_answer(tickets[n]) for n in everyone]
        return found

    def seconds(self) -> dict[str, list[float]]:
        """How long all together take, greedy and without log-probabilities, mode by mode."""
        plain = [replace(r, sampling=Sampling(), logprobs=None) for r in self._requests]
        taken: dict[str, list[float]] = {mode: [] for mode in MODES}
        for run in range(self._options.runs + 1):
            for mode in MODES:
                with self._worker(mode, prefix_cache_bytes=0) as worker:
                    begin = time.perf_counter()
                    for ticket in [worker.submit(request) for request in plain]:
                        _answer(ticket)
                    if run:  # the first warms up
                        taken[mode].append(time.perf_counter() - begin)
        return taken

    def _worker(self, mode: str, **more: Any) -> Worker:
        options = self._options
        return Worker(
            self._model,
            max_rows=options.rows,
            queue=options.requests,
            prefill_chunk=options.chunk,
            deterministic=MODES[mode],
            **more,
        )


def _answer(ticket: Any) -> Answer:
    """Numbers as JSON gives them back: floats keep every bit."""
    *pieces, done = ticket.events()
    assert done.reason == "length", done
    return [
        [p.token, p.logprob, [list(best) for best in p.best]]
        for p in pieces
        if isinstance(p, Piece)
    ]


def _restarted(name: str, mode: str, options: Any) -> list[Answer]:
    command = [sys.executable, __file__, "--model", name, "--alone", mode]
    for option in ("device", "dtype", "requests", "tokens", "rows", "chunk"):
        if (value := getattr(options, option)) is not None:
            command += [f"--{option}", str(value)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _differences(expected: list[Answer], found: list[Answer]) -> tuple[int, int, int]:
    """How many tokens differ, how many log-probabilities of these and the best, and of how many.

    What follows a token that differs is another text, and not compared.
    """
    tokens = values = total = 0
    for one, other in zip(expected, found, strict=True):
        for (token, *rest), (other_token, *other_rest) in zip(one, other, strict=True):
            total += 1
            values += rest != other_rest
            tokens += token != other_token
            if token != other_token:
                break
    return tokens, values, total


if __name__ == "__main__":
    main()
