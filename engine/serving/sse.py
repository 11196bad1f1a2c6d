"""Server-sent events: how a stream is written, and what it does to a reader that is slow or gone.

Framing, pings and noticing that a client has left are sse-starlette's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus, SendTimeoutError

from .answers import cancel
from .settings import Settings

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

DONE = ServerSentEvent("[DONE]", sep="\n")


def event(value: Any, name: str | None = None) -> ServerSentEvent:
    """One event of JSON on a single line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return ServerSentEvent(text, event=name, sep="\n")


def plain(text: str) -> ServerSentEvent:
    """One event of plain text; each of its lines is a line of data."""
    return ServerSentEvent(text, sep="\n")


class Stream(EventSourceResponse):
    """A response of events, whose tickets are cancelled however it ends: when all is said, when the
    client is gone, when it reads nothing for too long, before the first event or after."""

    def __init__(
        self, events: AsyncIterator[ServerSentEvent], tickets: Sequence[Any], settings: Settings
    ) -> None:
        # It would break streams off at the first signal; the server finishes what runs.
        AppStatus.disable_automatic_graceful_drain()
        super().__init__(
            events, sep="\n", ping=settings.ping_seconds, send_timeout=settings.send_seconds
        )
        self._tickets = tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            pass  # its connection is closed for want of an end
        finally:
            cancel(self._tickets)
