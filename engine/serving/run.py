"""Runs the application on a socket until it is told to stop.

The first SIGINT or SIGTERM ends what listens and lets all that was accepted finish; the second ends
the process at once. Nothing on disk is half written then, for the server writes nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from ..console import remark
from ..errors import EngineError
from .app import application
from .service import Service
from .settings import Settings

_BACKLOG = 1024  # connections that the system keeps until they are accepted
_HEADER_BYTES = 64 << 10
_LOOK = 0.05  # seconds between two looks at whether WebSockets have been answered


def listen(settings: Settings) -> socket.socket:
    """A bound socket; raises EngineError where the address cannot be had.

    It is bound before a model is loaded, which may take minutes.
    """
    where = f"{settings.host}:{settings.port}"
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        # A port whose last server has just ended is free; one with a living server is not.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except (OSError, UnicodeError) as cause:
        if bound is not None:
            bound.close()
        reason = getattr(cause, "strerror", None) or str(cause)
        raise EngineError(
            f"cannot listen on {where} ({reason}): another server may have it; choose another "
            "--port, or 0 for any that is free"
        ) from None
    return bound


def url(bound: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def config_of(service: Service) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        application(service),
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        ws_max_size=service.settings.body_bytes,
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )


def serve(service: Service, bound: socket.socket) -> None:
    """Answer requests until a signal says stop, then finish what was accepted."""
    try:
        _Server(config_of(service), service).run([bound])
    finally:
        service.worker.close()


class _Server(uvicorn.Server):
    """uvicorn's, with signals as the header says."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            print(f"serving {self._service.name} at {url(sockets[0])}", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        while self._service.conversations:
            await asyncio.sleep(_LOOK)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> Any:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = self._service.closing = True
        name = signal.Signals(sig).name
        remark(f"{name}: finishing what runs; once more ends at once")
