"""Tickets as answers: several at once in the order things happen, or each as a whole.

However an answer ends, and whoever goes away, its tickets are cancelled: rows are free at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import GenerationFailed
from .requests import Done, Piece

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.requests import Request as HttpRequest

# The index of a ticket among those of a request, and what happened to it.
Events = AsyncGenerator[tuple[int, Piece | Done], None]


class ClientGone(Exception):
    """Nobody waits for this answer any more."""


@dataclass
class Answer:
    """A whole answer: its tokens, its text and its end."""

    pieces: list[Piece] = field(default_factory=list)
    done: Done | None = None

    def add(self, event: Piece | Done) -> None:
        if isinstance(event, Piece):
            self.pieces.append(event)
        else:
            self.done = event

    @property
    def text(self) -> str:
        return "".join([*(piece.text for piece in self.pieces), self.end.text])

    @property
    def end(self) -> Done:
        assert self.done is not None, "an answer is read when it is complete"
        return self.done


async def merged(tickets: Sequence[Any]) -> Events:
    """(index of its ticket, event) as they come, until all are done; all are cancelled at the end.

    A `Done` that tells of a failure is raised as GenerationFailed.
    """
    try:
        source = _single(tickets[0]) if len(tickets) == 1 else _several(tickets)
        async with aclosing(source) as events:
            async for index, event in events:
                if isinstance(event, Done) and event.reason in ("error", "cancelled"):
                    line = event.error or "the server ended this request before it was done"
                    raise GenerationFailed(line)
                yield index, event
    finally:
        cancel(tickets)


def cancel(tickets: Sequence[Any]) -> None:
    """Free the rows of tickets; those that are done have none."""
    for ticket in tickets:
        ticket.cancel()


async def whole(request: HttpRequest, tickets: Sequence[Any], watch: Any) -> list[Answer]:
    """The answers of all tickets. Raises ClientGone, and GenerationFailed."""

    async def collect() -> list[Answer]:
        answers = [Answer() for _ in tickets]
        async with aclosing(watch.observed(merged(tickets))) as events:
            async for index, event in events:
                answers[index].add(event)
        return answers

    try:
        return await unless_gone(request, collect())
    finally:
        cancel(tickets)


async def unless_gone(request: HTTPConnection, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns; it is cancelled, and ClientGone raised, once the client has left."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Any) -> None:
    """Wait until the client of a request or a WebSocket has left."""
    while not (await request.receive())["type"].endswith(".disconnect"):
        pass


async def _single(ticket: Any) -> Events:
    async with aclosing(ticket.aevents()) as events:
        async for event in events:
            yield 0, event


async def _several(tickets: Sequence[Any]) -> Events:
    """One task a ticket; the queue is short, so that a slow reader slows its own tickets alone."""
    queue: asyncio.Queue[tuple[int, Piece | Done | BaseException]] = asyncio.Queue(len(tickets))

    async def pump(index: int, ticket: Any) -> None:
        try:
            async with aclosing(ticket.aevents()) as events:
                async for event in events:
                    await queue.put((index, event))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.ensure_future(pump(i, ticket)) for i, ticket in enumerate(tickets)]
    try:
        running = len(tickets)
        while running:
            index, event = await queue.get()
            if isinstance(event, BaseException):
                raise event
            running -= isinstance(event, Done)
            yield index, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
