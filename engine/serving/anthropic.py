"""Anthropic's protocol: POST /v1/messages, whole and streamed, and /v1/messages/count_tokens.

As there, unknown fields are refused, `max_tokens` must be given, an assistant's last message is the
beginning of the answer, and a prompt's cached tokens are not counted among its input tokens.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import ServerSentEvent
from starlette.responses import JSONResponse, Response

from ..errors import EngineError, InvalidRequest
from ..sampling import Sampling
from .answers import Answer, merged, unless_gone, whole
from .problems import body as problem_body
from .problems import problem_of
from .requests import Done, Request
from .service import Service, stop_strings
from .sse import Stream, event
from .toolcalls import Call, ToolText

I32 = 2**31 - 1


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Part(BaseModel):
    """A block within the result of a tool."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: str
    text: str | None = None


class Block(Part):
    """One block of content; what its type needs is looked at when it is read."""

    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Part] | None = None


class Turn(Body):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class Tool(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    type: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class OutputConfig(Body):
    effort: str | None = None  # ignored
    format: dict[str, Any] | None = None


class CountBody(Body):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    cache_control: dict[str, Any] | None = None  # ignored: every prefix is cached


class MessagesBody(CountBody):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=I32)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=I32)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    metadata: dict[str, Any] | None = None  # ignored
    service_tier: str | None = None  # ignored


def routes(service: Service) -> APIRouter:
    """The routes of Anthropic's protocol."""
    router = APIRouter(tags=["Anthropic"])

    @router.post("/v1/messages")
    async def messages(body: MessagesBody, request: HttpRequest) -> Response:
        """The next turn of a conversation."""
        stop = stop_strings(body.stop_sequences, service.settings.stops)
        given = {"temperature": body.temperature, "top_k": body.top_k, "top_p": body.top_p}
        known = {key: value for key, value in given.items() if value is not None}
        sampling = Sampling(**{"temperature": 1.0, **known})
        prompt = await unless_gone(request, _prompt(service, body))
        max_tokens = service.tokens(body.max_tokens)
        tools = [tool["name"] for tool in _tools(body)]
        # What marks a call may be a special token.
        asked = Request(
            prompt,
            max_tokens,
            sampling,
            stop,
            constraint=await unless_gone(request, _grammar(service, body)),
            skip_special=not tools,
        )
        tickets = service.submit([asked])
        writer = _Writer(service.name, len(prompt), tools)
        if body.stream:
            events = _events(service, request.url.path, tickets, writer)
            return Stream(events, tickets, service.settings)
        (answer,) = await whole(request, tickets, service.watch)
        return JSONResponse(writer.message(answer))

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountBody, request: HttpRequest) -> JSONResponse:
        """How many tokens a conversation has."""
        prompt = await unless_gone(request, _prompt(service, body))
        return JSONResponse({"input_tokens": len(prompt)})

    return router


async def _events(
    service: Service, path: str, tickets: Sequence[Any], writer: _Writer
) -> AsyncIterator[ServerSentEvent]:
    """The events of a stream, in Anthropic's order."""
    try:
        for value in writer.begin():
            yield event(value, value["type"])
        async with aclosing(service.watch.observed(merged(tickets))) as happened:
            async for _, each in happened:
                values = writer.end(each) if isinstance(each, Done) else writer.text(each.text)
                for value in values:
                    yield event(value, value["type"])
    except EngineError as error:
        yield event(problem_body(path, problem_of(error)), "error")


class _Writer:
    """One answer. `tools` are the names of the tools there are."""

    def __init__(self, model: str, prompt: int, tools: Sequence[str]) -> None:
        self._tools = ToolText(tools) if tools else None
        self._block = -1  # the index of the block that was begun last
        self._head = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": prompt,  # how many of them are cached is known at the end
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 0,
            },
        }

    def message(self, answer: Answer) -> dict[str, Any]:
        begin = "".join(self._shown(piece.text) for piece in answer.pieces)
        rest, calls = self._rest(answer.end)
        content: list[dict[str, Any]] = []
        if (text := begin + rest).strip() or not calls:
            content.append({"type": "text", "text": text})
        content += [
            {"type": "tool_use", "id": _call_id(), "name": call.name, "input": call.input}
            for call in calls
        ]
        return {
            **self._head,
            "content": content,
            **_stopped(answer.end, calls),
            "usage": _usage(answer.end),
        }

    def begin(self) -> Iterator[dict[str, Any]]:
        yield {"type": "message_start", "message": self._head}
        yield {"type": "ping"}

    def text(self, text: str) -> Iterator[dict[str, Any]]:
        yield from self._text(self._shown(text))

    def end(self, done: Done) -> Iterator[dict[str, Any]]:
        rest, calls = self._rest(done)
        yield from self._text(rest)
        if self._block < 0 and not calls:  # an empty answer has one empty block
            yield self._start({"type": "text", "text": ""})
        for call in calls:
            if self._block >= 0:
                yield self._stop()
            yield self._start(
                {"type": "tool_use", "id": _call_id(), "name": call.name, "input": {}}
            )
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        yield self._stop()
        yield {"type": "message_delta", "delta": _stopped(done, calls), "usage": _usage(done)}
        yield {"type": "message_stop"}

    def _text(self, text: str) -> Iterator[dict[str, Any]]:
        if text:
            if self._block < 0:
                yield self._start({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": text})

    def _shown(self, text: str) -> str:
        return self._tools.push(text) if self._tools else text

    def _rest(self, done: Done) -> tuple[str, list[Call]]:
        begin = self._shown(done.text)
        rest, calls = self._tools.finish() if self._tools else ("", [])
        return begin + rest, calls

    def _start(self, block: dict[str, Any]) -> dict[str, Any]:
        self._block += 1
        return {"type": "content_block_start", "index": self._block, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._block, "delta": delta}

    def _stop(self) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": self._block}


async def _prompt(service: Service, body: CountBody) -> tuple[int, ...]:
    service.check_name(body.model)
    if (body.thinking or {}).get("type", "disabled") not in ("disabled", "adaptive"):
        raise InvalidRequest("thinking is not told apart here: leave it out")
    turns: list[dict[str, Any]] = []
    if body.system:
        turns.append({"role": "system", "content": _only_text(body.system, "system")})
    last = body.messages[-1]
    begun = _only_text(last.content, "messages") if last.role == "assistant" else ""
    if begun != begun.rstrip():
        raise InvalidRequest("the assistant's last message ends with spaces: an answer never does")
    for index, turn in enumerate(body.messages[:-1] if last.role == "assistant" else body.messages):
        turns += _turns(turn, f"messages.{index}")
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool["name"],
                "description": tool.get("description") or "",
                "parameters": tool["input_schema"],
            },
        }
        for tool in _tools(body)
    ]
    return await service.chat(turns, tools=tools or None, begun=begun)


async def _grammar(service: Service, body: MessagesBody) -> Any:
    """The constraint that an output format asks for."""
    asked = body.output_config.format if body.output_config else None
    if asked is None:
        return None
    if asked.get("type") != "json_schema" or not isinstance(asked.get("schema"), dict):
        raise InvalidRequest("output_config.format: give a type json_schema with a schema")
    if body.tools:
        raise InvalidRequest("output_config.format and tools exclude each other: leave one out")
    return await service.grammar("json_schema", asked["schema"])


def _tools(body: CountBody) -> list[dict[str, Any]]:
    """The tools a template is shown."""
    choice = (body.tool_choice or {}).get("type", "auto")
    if choice not in ("auto", "none"):
        raise InvalidRequest(
            "tool_choice: the model chooses here; say auto or none, and name the tool in the text"
        )
    found = []
    for tool in body.tools or () if choice == "auto" else ():
        if tool.type not in (None, "custom") or tool.input_schema is None:
            raise InvalidRequest(
                f"tool {tool.name!r:.80}: only tools with an input_schema are known, none that "
                "a server runs"
            )
        found.append(tool.model_dump(exclude_unset=True))
    return found


def _turns(turn: Turn, where: str) -> Iterator[dict[str, Any]]:
    """A message as templates know it: an assistant's calls are fields, a tool's result is a turn
    of its own."""
    if isinstance(turn.content, str):
        yield {"role": turn.role, "content": turn.content}
        return
    text, calls = "", []
    for block in turn.content:
        if block.type == "tool_use" and turn.role == "assistant":
            if block.name is None or block.input is None:
                raise InvalidRequest(f"{where}: a tool_use has a name and an input")
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id or "", "type": "function", "function": function})
        elif block.type == "tool_result" and turn.role == "user":
            if text:
                yield {"role": "user", "content": text}
                text = ""
            result = _only_text(block.content or "", where)
            yield {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": result}
        elif block.type not in ("thinking", "redacted_thinking"):
            text += _only_text([block], where)
    if calls:
        yield {"role": turn.role, "content": text, "tool_calls": calls}
    elif text or turn.role == "assistant":
        yield {"role": turn.role, "content": text}


def _only_text(content: str | Sequence[Part], where: str) -> str:
    """The text of content. Raises InvalidRequest for blocks of another type."""
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text" or block.text is None:
            raise InvalidRequest(
                f"{where}: a block of type {block.type!r:.40} is not served there; send text"
            )
    return "".join(block.text or "" for block in content)


def _stopped(done: Done, calls: Sequence[Call]) -> dict[str, Any]:
    by = done.stopped_by if isinstance(done.stopped_by, str) else None
    if calls:
        reason = "tool_use"
    elif done.reason == "length":
        reason = "max_tokens"
    else:
        reason = "end_turn" if by is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": by if reason == "stop_sequence" else None}


def _usage(done: Done) -> dict[str, Any]:
    return {
        "input_tokens": done.prompt_tokens - done.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": done.cached_tokens,
        "output_tokens": done.completion_tokens,
    }


def _call_id() -> str:
    return f"toolu_{uuid.uuid4().hex[:24]}"
