"""Models for workers: random ones of any family, with a tokenizer of which every id is a word."""

from __future__ import annotations

from engine.generate import generate
from engine.model import load
from engine.serving.requests import Done, Piece, Request
from engine.tokenizer.stream import StreamDecoder


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


def alone(model, request: Request) -> list[int]:
    """What `engine.generate` makes of a greedy request."""
    return list(
        generate(model.decoder, request.prompt, request.max_tokens, stop=request.stop_tokens)
    )


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
