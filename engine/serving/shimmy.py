"""shimmy's protocol: POST /api/generate, whole and streamed, /ws/generate, and the list of models.

As there: `prompt` is one turn of the user's where the model has a chat template, and a plain text
where it has none; answers are streamed unless `stream` is false; a stream is text as it comes, then
[DONE]; unknown fields are ignored. On the WebSocket a client says one message, the body of
/api/generate; it gets a message for each piece of text, {"error": ...} where something fails, and
{"done": true} at the end. Its default penalty of repetitions, which no request can say, is
not applied: temperature 0 is greedy.
Source: src/api.rs and src/engine/mod.rs of github.com/Michael-A-Kuykendall/shimmy.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sse_starlette import ServerSentEvent
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import EngineError, InvalidRequest
from ..sampling import Sampling
from .answers import ClientGone, cancel, merged, unless_gone, whole
from .problems import Problem, of_validation, problem_of
from .requests import Request
from .service import Service
from .sse import DONE, Stream, plain

# GenOptions::default of shimmy.
DEFAULTS = {"temperature": 0.7, "top_p": 0.9, "top_k": 40}
MAX_TOKENS = 256


class Turn(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    role: str
    content: str


class GenerateBody(BaseModel):
    """POST /api/generate."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
    model: str
    prompt: str | None = None
    messages: list[Turn] | None = None
    system: str | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    stream: bool | None = None


def routes(service: Service) -> APIRouter:
    """The routes of shimmy's protocol."""
    router = APIRouter(tags=["shimmy"])

    @router.get("/api/models")
    async def list_models() -> JSONResponse:
        """The one model."""
        return JSONResponse({"models": [_model(service)]})

    @router.post("/api/generate")
    async def generate(body: GenerateBody, request: HttpRequest) -> Response:
        """The continuation of a prompt or a conversation."""
        tickets = service.submit([await unless_gone(request, _asked(service, body))])
        if body.stream is not False:
            return Stream(_events(service, tickets), tickets, service.settings)
        (answer,) = await whole(request, tickets, service.watch)
        return JSONResponse({"response": answer.text})

    @router.websocket("/ws/generate")
    async def generate_messages(socket: WebSocket) -> None:
        """The same as messages of a WebSocket."""
        await socket.accept()
        said = await socket.receive()
        if said["type"] == "websocket.disconnect":
            return
        with service.conversation(), suppress(ClientGone, WebSocketDisconnect, TimeoutError):
            await unless_gone(socket, _told(service, socket, said.get("text") or said.get("bytes")))
            await socket.close()

    return router


async def _told(service: Service, socket: WebSocket, asked: str | bytes | None) -> None:
    """Say the messages of an answer. Raises TimeoutError for a client that reads nothing."""

    async def say(text: str) -> None:
        await asyncio.wait_for(socket.send_text(text), service.settings.send_seconds)

    try:
        body = GenerateBody.model_validate_json(asked or "")
        tickets = service.submit([await _asked(service, body)])
    except ValidationError as error:
        return await say(_error(of_validation(error.errors())))
    except EngineError as error:
        return await say(_error(problem_of(error)))
    try:
        async with aclosing(service.watch.observed(merged(tickets))) as happened:
            async for _, each in happened:
                if each.text:
                    await say(each.text)
    except EngineError as error:
        await say(_error(problem_of(error)))
    finally:
        cancel(tickets)
    await say(json.dumps({"done": True}))


def _error(problem: Problem) -> str:
    return json.dumps({"error": problem.message})


async def _events(service: Service, tickets: Sequence[Any]) -> AsyncIterator[ServerSentEvent]:
    try:
        async with aclosing(service.watch.observed(merged(tickets))) as happened:
            async for _, each in happened:
                if each.text:
                    yield plain(each.text)
    except EngineError as error:
        yield plain(f"[ERROR] {problem_of(error).message}")
    yield DONE


async def _asked(service: Service, body: GenerateBody) -> Request:
    service.check_name(body.model)
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    sampling = {**DEFAULTS, **{k: v for k, v in given.items() if v is not None}}
    sampling["top_k"] = max(sampling["top_k"], 0)  # llama.cpp's -1 is off
    max_tokens = service.tokens(body.max_tokens, MAX_TOKENS)
    return Request(await _prompt(service, body), max_tokens, Sampling(**sampling))


async def _prompt(service: Service, body: GenerateBody) -> tuple[int, ...]:
    turns = [{"role": "system", "content": body.system}] if body.system else []
    if body.messages is not None:
        return await service.chat([*turns, *(turn.model_dump() for turn in body.messages)])
    if body.prompt is None:
        raise InvalidRequest("neither prompt nor messages: give one of them")
    if service.tokenizer.templates:
        return await service.chat([*turns, {"role": "user", "content": body.prompt}])
    return await service.text(body.prompt)


def _model(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "size_bytes": service.details.get("size_bytes"),
        "model_type": service.details.get("model_type"),
        "parameter_count": None,
        "source": "registered",
    }
