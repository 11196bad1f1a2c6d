"""Who may ask, and how much at once: the layers around the application.

Pure ASGI: each looks at a request and lets it through or answers it. A loopback server is asked by
its own names alone, for a page of a stranger can point a name of its own at 127.0.0.1 (DNS
rebinding). Keys are compared in constant time, all of them each time.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.websockets import WebSocket

from .problems import Problem, response
from .settings import LOCAL_NAMES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = frozenset({"/", "/health", "/ready"})  # nothing to keep from anyone


ASKED = ("http", "websocket")


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or one for a WebSocket, with a problem."""
    answer = response(scope["path"], problem)
    if scope["type"] == "websocket":
        await WebSocket(scope, receive, send).send_denial_response(answer)
    else:
        await answer(scope, receive, send)


class Hosts:
    """Refuses requests whose Host header is not a name of this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ASKED and (host := _header(scope, b"host")) is not None:
            name = host.lower().rsplit(":", 1)[0] if not host.endswith("]") else host.lower()
            if name not in LOCAL_NAMES:
                problem = Problem(403, f"this server is not {host[:100]!r}: ask 127.0.0.1")
                await refuse(problem, scope, receive, send)
                return
        await self.app(scope, receive, send)


class Origins:
    """Refuses WebSockets of pages of other sites, which no browser asks about beforehand."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self.app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and (origin := _header(scope, b"origin")) is not None:
            own = origin.partition("://")[2] == _header(scope, b"host")
            if not own and origin not in self._origins:
                problem = Problem(403, f"pages of {origin[:100]!r} may not ask: --allow-origin")
                await refuse(problem, scope, receive, send)
                return
        await self.app(scope, receive, send)


class Keys:
    """Refuses requests without one of the keys, as `Authorization: Bearer` or `x-api-key`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._keys = tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ASKED and scope["path"] not in OPEN and not self._known(scope):
            problem = Problem(
                401,
                "no API key, or one that is not known: send Authorization: Bearer KEY or x-api-key",
                code="invalid_api_key",
            )
            await refuse(problem, scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        scheme, _, bearer = (_header(scope, b"authorization") or "").partition(" ")
        shown = [bearer.strip()] if scheme.lower() == "bearer" else []
        shown += [key] if (key := _header(scope, b"x-api-key")) else []
        # A sum, not `any`: the time does not tell which key it was, or whether it was the first.
        return (
            sum(
                hmac.compare_digest(each.encode("latin-1"), key)
                for each in shown
                for key in self._keys
            )
            > 0
        )


class BodyLimit:
    """Refuses bodies of more than `limit` bytes, by their header or once they are that long.

    As many bytes again are read and dropped before: a client that still sends when its connection
    is closed does not see the answer.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = _header(scope, b"content-length") or "0"
        if told.isdecimal() and int(told) > self._limit:
            await self._refuse(scope, receive, send)
            return
        read = 0
        more = started = False

        async def counted() -> Message:
            nonlocal read, more
            message = await receive()
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
            if read > self._limit:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLarge:
            if not started:
                await self._refuse(scope, receive, send, more)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, more: bool = True) -> None:
        left = self._limit
        while more and left > 0:
            message = await receive()
            left, more = left - len(message.get("body", b"")), message.get("more_body", False)
        problem = Problem(413, f"the body has more than {self._limit:,} bytes: send less")
        answer = response(scope["path"], problem)
        answer.headers["Connection"] = "close"  # what follows on it is the rest of that body
        await answer(scope, receive, send)


class _TooLarge(BaseException):
    """No Exception, so that whoever reads a body and wraps errors does not wrap this one."""


def _header(scope: Scope, name: bytes) -> str | None:
    found = (value for key, value in scope["headers"] if key == name)
    value = next(found, None)
    return None if value is None else value.decode("latin-1")
