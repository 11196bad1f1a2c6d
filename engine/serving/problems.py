"""What can go wrong with a request, and how each protocol says so.

An error becomes a `Problem`: a status, one clear line, and what clients act on. Which protocol's
shape it gets is told by the path of the request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from ..errors import (
    EngineError,
    GenerationFailed,
    ModelNotServed,
    QueueFull,
    ShuttingDown,
)


@dataclass(frozen=True)
class Problem:
    """`param` is the field at fault, `code` OpenAI's word for it, `retry_after` in seconds."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None


# Errors of the engine that are not a fault of the request itself; all others are 400.
_STATUS: Mapping[type[EngineError], tuple[int, str | None]] = {
    ModelNotServed: (404, "model_not_found"),
    QueueFull: (429, "rate_limit_exceeded"),
    ShuttingDown: (503, None),
    GenerationFailed: (500, None),
}
_OPENAI = {
    401: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def problem_of(error: Exception) -> Problem:
    """What an error says to a client; what is no error of the engine says nothing of itself."""
    if not isinstance(error, EngineError):
        return Problem(500, "the server failed at this request: its log says why")
    kinds = (kind for kind in type(error).__mro__ if kind in _STATUS)
    status, code = next((_STATUS[kind] for kind in kinds), (400, None))
    retry = error.retry_after if isinstance(error, QueueFull) else None
    param = getattr(error, "param", None)
    return Problem(status, " ".join(str(error).split()), param, code, retry)


def of_validation(errors: list[Any]) -> Problem:
    """The first thing that pydantic finds wrong with a body, with the place where it is."""
    first = errors[0]
    place = [str(step) for step in first["loc"] if step != "body"]
    where = ".".join(place)
    shown = _shown(first.get("input"))
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is no JSON ({first['ctx']['error']} at {where})")
    if first["type"] == "extra_forbidden":
        return Problem(400, f"unknown field {where}: leave it out", where, "unknown_parameter")
    if first["type"] == "missing":
        return Problem(400, f"{where or 'the body'} is missing: give it", where or None)
    if not place:
        return Problem(400, "the body is no JSON object: send one, as application/json")
    return Problem(400, f"{where}={shown}: {first['msg']}", where, "invalid_value")


def response(path: str, problem: Problem) -> JSONResponse:
    """The answer to a request for `path` that met a problem."""
    headers = {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(problem.retry_after)))
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(path, problem), problem.status, headers)


def body(path: str, problem: Problem) -> dict[str, Any]:
    """The JSON of a problem in the shape of the protocol that `path` belongs to."""
    shapes = (shape for prefix, shape in _SHAPES.items() if path.startswith(prefix))
    return next(shapes, _openai)(problem)


def _openai(problem: Problem) -> dict[str, Any]:
    kind = _OPENAI.get(problem.status, "invalid_request_error")
    return {
        "error": {
            "message": problem.message,
            "type": kind,
            "param": problem.param,
            "code": problem.code,
        }
    }


def _anthropic(problem: Problem) -> dict[str, Any]:
    kind = _ANTHROPIC.get(problem.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": problem.message}}


def _plain(problem: Problem) -> dict[str, Any]:
    return {"error": problem.message}


_SHAPES: Mapping[str, Callable[[Problem], dict[str, Any]]] = {
    "/v1/messages": _anthropic,
    "/api/": _plain,
}


def _shown(value: Any) -> str:
    """A value as JSON, cut short; surrogates and what is not finite are escaped."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
