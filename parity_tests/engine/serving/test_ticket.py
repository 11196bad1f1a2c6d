"""Readers: slow ones, event loops, those that are gone."""

from __future__ import annotations

import asyncio

from engine.serving.requests import Piece, Request

from .models import alone, read, requests_of, tokens, worker_of


def test_a_slow_reader_stops_nobody(worded_model):
    """Its ticket holds what was made, at most one event a token and the end."""
    model = worded_model("llama", "llama3")
    with worker_of(model) as worker:
        slow = worker.submit(Request((4, 5), 30))
        for _ in range(3):
            assert tokens(worker.submit(Request((1, 2), 40))) == alone(model, Request((1, 2), 40))
        assert len(slow._events) == 31
        assert tokens(slow) == alone(model, Request((4, 5), 30))


def test_the_end_can_be_read_again(worded_model):
    with worker_of(worded_model("llama", "llama3")) as worker:
        ticket = worker.submit(Request((4, 5), 3))
        _, done = read(ticket)
        assert list(ticket.events()) == [done]


def test_an_event_loop_is_never_blocked(worded_model):
    model = worded_model("llama", "llama3")
    requests = requests_of(4, 5)

    async def collect(ticket):
        return [event async for event in ticket.aevents()]

    async def main(worker):
        beats, done = 0, False

        async def beat():
            nonlocal beats
            while not done:
                beats += 1
                await asyncio.sleep(0)

        heart = asyncio.ensure_future(beat())
        found = await asyncio.gather(*(collect(worker.submit(r)) for r in requests))
        done = True
        await heart
        return found, beats

    with worker_of(model) as worker:
        found, beats = asyncio.run(main(worker))
    assert [[e.token for e in events[:-1]] for events in found] == [
        alone(model, r) for r in requests
    ]
    assert beats > 10


def test_a_loop_that_is_gone_harms_nobody(worded_model):
    model = worded_model("llama", "llama3")

    async def first(ticket):
        async for event in ticket.aevents():
            return event

    with worker_of(model) as worker:
        ticket = worker.submit(Request((1, 2), 60))
        assert isinstance(asyncio.run(first(ticket)), Piece)
        assert tokens(worker.submit(Request((1, 2), 5))) == alone(model, Request((1, 2), 5))
