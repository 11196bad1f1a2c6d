"""Prompts are fed in chunks, in turns, and less what is known."""

from __future__ import annotations

from engine.serving.prefill import Prefill
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


def test_short_prompts_of_like_length_are_one_batch(worded_model, monkeypatch):
    """And each gets what it gets alone; what they leave behind is found by the next."""
    model, fed = worded_model("mistral", "window"), []
    whole = Prefill.feed_together
    monkeypatch.setattr(
        Prefill, "feed_together", lambda self, jobs: fed.append(len(jobs)) or whole(self, jobs)
    )
    requests = [Request(tuple(range(n, n + length)), 5) for n, length in enumerate((12, 10, 13))]
    with worker_of(model, prefill_chunk=64) as worker, held(monkeypatch) as gate:
        blocker = worker.submit(Request((1, 2), 3))
        tickets = [worker.submit(request) for request in requests]
        gate.set()
        read(blocker)
        answers = [tokens(ticket) for ticket in tickets]
        assert fed, "at least two of them were there at once"
        assert answers == [alone(model, request) for request in requests]
        _, done = read(worker.submit(Request((*requests[1].prompt, 40), 2)))
        assert done.cached_tokens == len(requests[1].prompt)


def test_prompts_that_begin_alike_or_differ_much_in_length_are_not(worded_model, monkeypatch):
    model, shared = worded_model("llama", "llama3"), tuple(range(40))
    monkeypatch.setattr(Prefill, "feed_together", lambda self, jobs: 1 / 0)
    requests = [Request((*shared, 50), 3), Request((*shared, 51), 3), Request((7, 8, 9), 3)]
    with worker_of(model, prefill_chunk=256) as worker, held(monkeypatch) as gate:
        tickets = [worker.submit(request) for request in requests]
        gate.set()
        assert [tokens(ticket) for ticket in tickets] == [alone(model, r) for r in requests]
