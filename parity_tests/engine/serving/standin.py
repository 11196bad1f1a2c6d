"""A worker that says what a test tells it to, and notes what is asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from engine.errors import QueueFull
from engine.serving.requests import Done, Piece, Request, WorkerStatus

Script = Callable[[Request], Iterable[Piece | Done]]


def said(*texts: str, reason: str = "stop", stopped_by=None, prompt: int = 3, rest: str = ""):
    """Events of an answer in these pieces."""
    pieces = [Piece(text, token, -0.5, ((token, -0.5),)) for token, text in enumerate(texts)]
    return [*pieces, Done(reason, rest, prompt, 0, len(pieces), stopped_by)]


STATUS = WorkerStatus(
    waiting=3,
    running=2,
    rows=8,
    queue=64,
    tokens_per_second=12.5,
    cache_bytes=3 << 20,
    row_bytes=1 << 20,
    peak_memory=1 << 30,
    requests=7,
    prompt_tokens=100,
    cached_tokens=40,
    generated_tokens=12345,
    cache_hits=2,
    cache_misses=6,
    cancelled=1,
    failed=0,
    closing=False,
    dead=None,
)


@dataclass
class Ticket:
    events: list[Piece | Done]
    delay: float
    hold: asyncio.Event | None
    cancelled: bool = False
    given: int = 0

    async def aevents(self):
        for event in self.events:
            if self.hold is not None and isinstance(event, Done):
                await self.hold.wait()
            await asyncio.sleep(self.delay)
            self.given += 1
            yield event

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Worker:
    """`script(request)` gives the events; `room` is how many are taken before the queue is full."""

    script: Script
    room: int = 1000
    delay: float = 0.0
    hold: asyncio.Event | None = None  # until it is set no answer ends
    status: WorkerStatus = STATUS
    requests: list[Request] = field(default_factory=list)
    tickets: list[Ticket] = field(default_factory=list)
    closed: bool = False

    def submit(self, request: Request) -> Ticket:
        if len(self.tickets) >= self.room:
            raise QueueFull(f"{self.room} requests wait already: ask again later", 2.5)
        ticket = Ticket(list(self.script(request)), self.delay, self.hold)
        self.requests.append(request)
        self.tickets.append(ticket)
        return ticket

    def close(self, *, finish: bool = True, seconds: float | None = None) -> None:
        self.closed = True
