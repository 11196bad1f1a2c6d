"""The page at /: to chat, and to see the metrics. One file that asks nobody but this server."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse

_FILE = Path(__file__).with_name("page.html")
# What the page holds itself is all that a browser runs, and this server all that it asks.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def routes() -> APIRouter:
    """The page."""
    router = APIRouter(tags=["page"])
    page = _FILE.read_text(encoding="utf-8")

    @router.get("/", response_class=HTMLResponse)
    async def root() -> HTMLResponse:
        """Chat and metrics, for people."""
        headers = {
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return HTMLResponse(page, headers=headers)

    return router
