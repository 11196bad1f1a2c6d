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
        """The process is alive; what the page has to know of the model."""
        return JSONResponse(
            {
                "status": "ok",
                "version": __version__,
                "model": service.name,
                "chat": bool(service.tokenizer.templates),
                "max_tokens": service.settings.max_tokens,
            }
        )

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """Requests are taken: 503 while it shuts down."""
        if service.closing:
            return JSONResponse({"status": "shutting down"}, 503, {"Retry-After": "1"})
        return JSONResponse({"status": "ready", "model": service.name})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        text = generate_latest(service.watch.registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
