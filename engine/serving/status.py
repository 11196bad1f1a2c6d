"""How the server is: /health, /ready, and /metrics for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from .. import __version__
from .service import Service


def routes(service: Service) -> APIRouter:
    """The routes that say how the server is."""
    router = APIRouter(tags=["status"])

    @router.get("/health")
    async def health() -> JSONResponse:
        """Whether the worker is alive, and what the page has to know of the model."""
        dead = service.worker.status.dead
        return JSONResponse(
            {
                "status": "ok" if dead is None else f"the worker has ended: {dead}",
                "version": __version__,
                "model": service.name,
                "chat": bool(service.tokenizer.templates),
                "max_tokens": service.settings.max_tokens,
            },
            200 if dead is None else 503,
        )

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """Whether requests are taken: not while it shuts down."""
        if service.closing or service.worker.status.dead is not None:
            return JSONResponse({"status": "takes nothing new"}, 503)
        return JSONResponse({"status": "ready", "model": service.name})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        text = generate_latest(service.watch.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
