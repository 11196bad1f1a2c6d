"""Models for workers, what to ask of them, and what they should say.

Random models of any family, with a tokenizer of which every id is a word.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine.decoder import Decoder
from engine.generate import DecoderFeed, steps
from engine.model import load
from engine.serving.requests import Done, Piece, Request
from engine.serving.worker import Worker
from engine.tokenizer.stream import StreamDecoder
from engine.weights.quantised import Packing


class Words:
    """Id 17 is "17 "."""

    clean_up = False
    special_ids: frozenset[int] = frozenset()
    eos_ids: frozenset[int] = frozenset()

    def raw_decode(self, ids, *, skip_special=False):
        return "".join(f"{id} " for id in ids)

    def token(self, id):
        return f"{id} "

    def stream(self, *, skip_special=False):
        return StreamDecoder(self, skip_special=skip_special)


def worded(folder, dtype="float32"):
    """The model in a folder, its weights in memory, with `Words` for its tokenizer."""
    model = load(folder, dtype=dtype)
    model.__dict__["tokenizer"] = Words()
    return model


def alone(model, request: Request, packing: Packing | None = None) -> list[int]:
    """What `engine.generate` makes of a greedy request."""
    feed, prompt = DecoderFeed(model.decoder, packing), request.prompt
    found = steps(feed, prompt, request.max_tokens, stop=request.stop_tokens)
    return [step.token for step in found]


def read(ticket) -> tuple[list[Piece], Done]:
    """All events of a ticket."""
    *pieces, done = ticket.events()
    assert isinstance(done, Done) and all(isinstance(piece, Piece) for piece in pieces)
    assert done.completion_tokens == len(pieces)
    return pieces, done


def tokens(ticket) -> list[int]:
    """The tokens of a ticket that ended as it should."""
    pieces, done = read(ticket)
    assert done.reason in ("stop", "length"), done
    return [piece.token for piece in pieces]


# Windows, latent attention, experts, sinks, positions that are learned, scaled and of each length.
SOME = [
    ("llama", "llama3"),
    ("mistral", "window"),
    ("gemma3_text", "local-global"),
    ("deepseek_v3", "yarn"),
    ("gpt_oss", "yarn"),
    ("gpt2", "plain"),
    ("llama", "dynamic"),
    ("phi3", "longrope"),
]
CHUNK = 16


def prompts_of(seed: int, count: int, longest: int = 80) -> list[tuple[int, ...]]:
    """Random prompts, some of which begin alike, or with all of another."""
    chance = random.Random(seed)
    known = [tuple(chance.randrange(131) for _ in range(longest)) for _ in range(2)]
    found = []
    for _ in range(count):
        shared = chance.choice([*known, *found])[: chance.choice([0, CHUNK, longest])]
        fresh = tuple(chance.randrange(131) for _ in range(chance.randint(1, 20)))
        found.append((shared + fresh)[:longest])
    return found


def requests_of(seed: int, count: int, longest: int = 80) -> list[Request]:
    """Greedy requests of such prompts."""
    chance = random.Random(seed)
    return [Request(p, chance.randint(1, 30)) for p in prompts_of(seed, count, longest)]


def worker_of(model, **more) -> Worker:
    """A worker with few rows and short chunks."""
    return Worker(model, **{"max_rows": 4, "prefill_chunk": CHUNK, **more})


def run(model, requests, **more) -> list[list[int]]:
    """The tokens of requests each of which comes when the one before it decodes."""
    with worker_of(model, **more) as worker:
        streams, first = [], []
        for request in requests:
            streams.append(worker.submit(request).events())
            first.append(next(streams[-1]))
        events = ([one, *rest] for one, rest in zip(first, streams, strict=True))
        return [[event.token for event in each[:-1]] for each in events]


@contextmanager
def held(monkeypatch) -> Iterator[threading.Event]:
    """No model computes until the event is set, or the block is left."""
    gate, call = threading.Event(), Decoder.__call__

    def waiting(self, *args, **more):
        gate.wait()
        return call(self, *args, **more)

    monkeypatch.setattr(Decoder, "__call__", waiting)
    try:
        yield gate
    finally:
        gate.set()
