"""Prompts are fed in chunks, in turns, and less what is known."""

from __future__ import annotations

from engine.serving.requests import Piece, Request

from .models import alone, held, read, tokens, worker_of


def test_a_long_prompt_does_not_stop_the_others(worded_model):
    """Its chunks are fed between their steps."""
    model = worded_model("llama", "llama3")
    with worker_of(model) as worker:
        short = worker.submit(Request((1, 2, 3), 200))
        reading = short.events()
        next(reading)
        long = worker.submit(Request(tuple(range(100)) * 4, 2))  # 25 chunks
        first = next(iter(long.events()))
        assert isinstance(first, Piece)
        assert len(short._events) >= 20, "as many steps as chunks, but for those of the beginning"
        short.cancel()


def test_a_short_prompt_does_not_wait_for_a_long_one(worded_model, monkeypatch):
    model = worded_model("llama", "llama3")
    with worker_of(model) as worker, held(monkeypatch) as gate:
        long = worker.submit(Request(tuple(range(100)) * 4, 1))
        short = worker.submit(Request((1, 2, 3), 1))
        gate.set()
        read(short)
        assert not long._events
        read(long)


def test_requests_of_one_beginning_compute_it_once(worded_model):
    model = worded_model("llama", "llama3")
    shared = tuple(range(100))
    requests = [Request((*shared, n), 3) for n in range(4)]
    with worker_of(model) as worker:
        done = [read(ticket)[1] for ticket in [worker.submit(request) for request in requests]]
        computed = sum(d.prompt_tokens - d.cached_tokens for d in done)
    assert computed < 2 * len(shared)


def test_the_next_turn_of_a_conversation_is_known(worded_model):
    """Prompt and answer, but for the last token, which was never fed or is fed again."""
    model = worded_model("llama", "llama3")
    with worker_of(model) as worker:
        first = Request((5, 6, 7, 8), 10)
        answer = tokens(worker.submit(first))
        prompt = (*first.prompt, *answer, 9, 10, 11)
        pieces, done = read(worker.submit(Request(prompt, 10)))
        assert done.cached_tokens >= len(first.prompt) + len(answer) - 1
        assert [p.token for p in pieces] == alone(model, Request(prompt, 10))
