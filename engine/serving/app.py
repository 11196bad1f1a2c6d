"""The application: protocols, page and status as one, behind its guards.

`application(service)` is an ASGI application; who runs it is `run.py`'s business.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..errors import EngineError
from . import anthropic, openai, page, shimmy, status, tokens
from .answers import ClientGone
from .guard import ASKED, BodyLimit, Hosts, Keys, Origins
from .problems import Problem, of_validation, problem_of, response
from .service import Service
from .watch import Watch

CLIENT_GONE = 499  # nginx's word for it; nobody reads it but the metrics


def application(service: Service) -> FastAPI:
    """All routes of a service; what it refuses is in the shape of the protocol that is asked."""
    app = FastAPI(
        title="mlx-parity",
        version=__version__,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        middleware=_guards(service),
        exception_handlers={
            EngineError: _engine_error,
            RequestValidationError: _invalid,
            HTTPException: _http_error,
            ClientGone: _gone,
            Exception: _engine_error,
        },
    )
    for router in (
        openai.routes(service),
        anthropic.routes(service),
        shimmy.routes(service),
        tokens.routes(service),
        status.routes(service),
        page.routes(),
    ):
        app.include_router(router)
    return app


def _guards(service: Service) -> list[Middleware]:
    """From the outermost on."""
    settings = service.settings
    found = [Middleware(_Counted, watch=service.watch)]
    if settings.loopback:
        found.append(Middleware(Hosts))
    if settings.origins:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=settings.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
            )
        )
    found.append(Middleware(Origins, origins=settings.origins))
    if settings.keys:
        found.append(Middleware(Keys, keys=settings.keys))
    return [*found, Middleware(BodyLimit, limit=settings.body_bytes)]


# What begins an answer, and its status where it says none.
_STARTS = {
    "http.response.start": None,
    "websocket.http.response.start": None,
    "websocket.accept": 101,
}


class _Counted:
    """Counts answers by route and status."""

    def __init__(self, app: ASGIApp, watch: Watch) -> None:
        self.app, self._watch = app, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ASKED:
            await self.app(scope, receive, send)
            return

        async def noted(message: Message) -> None:
            if message["type"] in _STARTS:
                # The route's own path, so that names in addresses make no new series.
                route = getattr(scope.get("route"), "path", "none")
                status = message.get("status", _STARTS[message["type"]])
                self._watch.answers.labels(route, str(status)).inc()
            await send(message)

        await self.app(scope, receive, noted)


async def _engine_error(request: Request, error: Exception) -> Response:
    return response(request.url.path, problem_of(error))


async def _invalid(request: Request, error: Any) -> Response:
    return response(request.url.path, of_validation(error.errors()))


async def _http_error(request: Request, error: Any) -> Response:
    path = request.url.path
    words = {404: f"no {path} here", 405: f"{path} does not take {request.method}"}
    message = words.get(error.status_code, str(error.detail))
    answer = response(path, Problem(error.status_code, message))
    answer.headers.update(error.headers or {})
    return answer


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
