"""Tickets as answers: what is merged, what is cancelled, and when."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import GenerationFailed
from engine.serving.answers import Answer, ClientGone, merged, unless_gone, whole
from engine.serving.requests import Done, Piece
from engine.serving.watch import Watch
from parity_tests.engine.serving.standin import Ticket, Worker, said


class Http:
    """A request whose client leaves after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    async def receive(self):
        await asyncio.sleep(self.seconds)
        return {"type": "http.disconnect"}


def tickets(*answers, delay: float = 0.0) -> list[Ticket]:
    return [Ticket(events, delay, None) for events in answers]


async def all_of(given) -> list:
    return [pair async for pair in merged(given)]


@given(st.lists(st.lists(st.text(max_size=3), max_size=5), min_size=1, max_size=5))
def test_events_keep_their_order_and_their_ticket(texts):
    made = tickets(*(said(*each) for each in texts))
    pairs = asyncio.run(all_of(made))
    for index, ticket in enumerate(made):
        assert [event for i, event in pairs if i == index] == ticket.events
    assert all(ticket.cancelled for ticket in made)  # harmless for what is done


@pytest.mark.parametrize("reason", ["error", "cancelled"])
@pytest.mark.parametrize("count", [1, 3])
def test_one_failure_ends_all(reason, count):
    failed = [Piece("a", 1), Done(reason, "", 1, 0, 1, error="why" if reason == "error" else None)]
    made = tickets(failed, *[said("x")] * (count - 1), delay=0.001)
    with pytest.raises(GenerationFailed, match="why" if reason == "error" else "before it was"):
        asyncio.run(all_of(made))
    assert all(ticket.cancelled for ticket in made)


def test_answers_are_whole():
    made = tickets(said("a", "b", rest="c"), said("d", reason="length"))
    watch = Watch(Worker(lambda request: []))
    one, two = asyncio.run(whole(Http(60), made, watch))  # type: ignore[arg-type]
    assert (one.text, two.text) == ("abc", "d")
    assert (one.end.reason, two.end.reason) == ("stop", "length")
    with pytest.raises(AssertionError):
        _ = Answer().text  # of what has not ended


def test_who_leaves_is_not_waited_for():
    made = tickets(said("a", "b"), said("c"), delay=30)
    watch = Watch(Worker(lambda request: []))
    with pytest.raises(ClientGone):
        asyncio.run(whole(Http(0.02), made, watch))  # type: ignore[arg-type]
    assert all(ticket.cancelled for ticket in made)


def test_errors_of_the_work_come_through():
    async def work():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(unless_gone(Http(60), work()))  # type: ignore[arg-type]
