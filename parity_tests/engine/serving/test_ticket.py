"""Readers: slow ones, event loops, those that are gone."""

from __future__ import annotations

import asyncio
import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.serving.requests import Done, Piece, Request
from engine.serving.ticket import Ticket

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


def test_a_turn_wakes_the_loop_once(monkeypatch):
    """Events of many tickets that come while the loop is busy; none is left lying."""

    async def main():
        loop, calls = asyncio.get_running_loop(), []
        usual = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *call: (calls.append(call), usual(*call))
        )
        tickets = [Ticket(lambda: None) for _ in range(8)]
        readers = [ticket.aevents() for ticket in tickets]
        waiting = [asyncio.ensure_future(anext(reader)) for reader in readers]
        for turn in range(3):
            await asyncio.sleep(0)  # all of them wait
            for ticket in tickets:
                ticket.put(Piece("x", turn))
            assert len(calls) == turn + 1
            assert [event.token for event in await asyncio.gather(*waiting)] == [turn] * 8
            waiting = [asyncio.ensure_future(anext(reader)) for reader in readers]
        for task in waiting:
            task.cancel()

    asyncio.run(main())


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_no_event_is_slept_through(seed):
    """Whenever threads tell them, also between a look and the next wait."""
    chance = random.Random(seed)
    pauses = [[chance.choice([0, 0, 1e-6, 1e-4]) for _ in range(20)] for _ in range(4)]
    end = Done("stop", "", 1, 0, 20)

    def tell(ticket, pauses):
        for n, pause in enumerate(pauses):
            time.sleep(pause)
            ticket.put(Piece("x", n))
        ticket.put(end)

    async def collect(ticket):
        return [event async for event in ticket.aevents()]

    async def main():
        tickets = [Ticket(lambda: None) for _ in pauses]
        tellers = [asyncio.to_thread(tell, *pair) for pair in zip(tickets, pauses, strict=True)]
        readers = [collect(ticket) for ticket in tickets]
        return await asyncio.wait_for(asyncio.gather(*readers, *tellers), 20)

    told = asyncio.run(main())[:4]
    assert all([e.token for e in events[:-1]] == [*range(20)] for events in told)
    assert all(events[-1] is end for events in told)


def test_a_loop_that_is_gone_harms_nobody(worded_model):
    model = worded_model("llama", "llama3")

    async def first(ticket):
        async for event in ticket.aevents():
            return event

    with worker_of(model) as worker:
        ticket = worker.submit(Request((1, 2), 60))
        assert isinstance(asyncio.run(first(ticket)), Piece)
        assert tokens(worker.submit(Request((1, 2), 5))) == alone(model, Request((1, 2), 5))
