"""OpenAI's protocol: /v1/models, /v1/chat/completions and /v1/completions, whole and streamed.

Bodies stand in `openai_schema.py`. What is a writer here says how one answer of one route is
written, in pieces and whole.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from sse_starlette import ServerSentEvent
from starlette.responses import JSONResponse, Response

from ..errors import EngineError, InvalidRequest
from ..sampling import Sampling
from .answers import merged, unless_gone, whole
from .logprobs import LogProbs
from .openai_schema import ChatBody, CompletionBody, Generation, Message
from .openai_writers import ChatWriter, TextWriter, usage
from .problems import body as problem_body
from .problems import problem_of
from .requests import Done, Request
from .service import Service, arguments, stop_strings
from .sse import DONE, Stream, event

COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions


def routes(service: Service) -> APIRouter:
    """The routes of OpenAI's protocol."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models")
    async def list_models() -> JSONResponse:
        """The one model."""
        return JSONResponse({"object": "list", "data": [_model(service)]})

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> JSONResponse:
        """The model by its name."""
        service.check_name(name)
        return JSONResponse(_model(service))

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: HttpRequest) -> Response:
        """The next turn of a conversation."""
        asked = await unless_gone(request, _chat(service, body))
        return await _answered(service, request, body, asked)

    @router.post("/v1/completions")
    async def completions(body: CompletionBody, request: HttpRequest) -> Response:
        """The continuation of texts."""
        asked = await unless_gone(request, _completion(service, body))
        return await _answered(service, request, body, asked)

    return router


@dataclass
class _Asked:
    """What a body comes to: requests, `n` after one another of one prompt, and their writers."""

    requests: list[Request]
    writers: list[ChatWriter] | list[TextWriter]
    n: int
    kind: str  # of the id
    whole: str  # the object's name
    chunk: str


async def _chat(service: Service, body: ChatBody) -> _Asked:
    service.check_name(body.model)
    if body.modalities not in (None, [], ["text"]):
        raise InvalidRequest(f"modalities={body.modalities!r:.80}: only text is served")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs goes with logprobs=true: add it")
    tools = _tools(body)
    more = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        more.setdefault("reasoning_effort", body.reasoning_effort)
    messages = [_turn(message, i) for i, message in enumerate(body.messages)]
    prompt = await service.chat(messages, tools=tools or None, more=more)
    grammar = _grammar(body)
    if grammar is not None and tools:
        raise InvalidRequest("response_format and tools exclude each other here: leave one out")
    tokens = service.tokens(body.max_completion_tokens or body.max_tokens)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    requests = await _requests(service, body, [prompt], tokens, logprobs, grammar)
    if tools:  # what marks a call may be a special token
        requests = [replace(request, skip_special=False) for request in requests]
    names = [tool["function"]["name"] for tool in tools]
    writers = [
        ChatWriter(i, names, LogProbs(service.tokenizer, each) if body.logprobs else None)
        for i, each in enumerate(requests)
    ]
    return _Asked(
        requests, writers, body.n or 1, "chatcmpl", "chat.completion", "chat.completion.chunk"
    )


async def _completion(service: Service, body: CompletionBody) -> _Asked:
    service.check_name(body.model)
    n = body.n or 1
    if body.suffix:
        raise InvalidRequest("suffix: text is continued here, not filled in; leave it out")
    if body.best_of not in (None, n):
        raise InvalidRequest(f"best_of={body.best_of}: {n} answers are made for n={n}; say as much")
    in_entries = body.logprobs is True
    if body.top_logprobs is not None and not in_entries:
        raise InvalidRequest("top_logprobs goes with logprobs=true: add it")
    number = (body.top_logprobs or 0) if in_entries else body.logprobs
    logprobs = None if number is None or number is False else int(number)
    if body.echo and logprobs is not None:
        raise InvalidRequest("echo and logprobs: a prompt's own are not computed; leave one out")
    given = _prompts(body)
    prompts = [await service.text(p) if isinstance(p, str) else tuple(p) for p in given]
    tokens = service.tokens(body.max_tokens, COMPLETION_TOKENS)
    requests = await _requests(service, body, prompts, tokens, logprobs, None)
    writers = []
    for i, request in enumerate(requests):
        text = given[i // n] if body.echo else ""
        shown = text if isinstance(text, str) else service.tokenizer.decode(text)
        lists = None if logprobs is None else LogProbs(service.tokenizer, request)
        writers.append(TextWriter(i, shown, lists, in_entries))
    return _Asked(requests, writers, n, "cmpl", "text_completion", "text_completion")


async def _requests(
    service: Service,
    body: Generation,
    prompts: Sequence[tuple[int, ...]],
    tokens: int,
    logprobs: int | None,
    grammar: tuple[str, Any] | None,
) -> list[Request]:
    """`n` requests for each prompt; each has a grammar of its own, for it has a state."""
    n, settings = body.n or 1, service.settings
    if len(prompts) * n > settings.choices:
        raise InvalidRequest(
            f"{len(prompts) * n} answers to one request: this server gives at most "
            f"{settings.choices}"
        )
    stop = stop_strings(body.stop, settings.stops)
    if beyond := [token for token in body.stop_token_ids or () if token >= service.vocab]:
        raise InvalidRequest(
            f"stop_token_ids has {beyond[0]}: token ids here are below {service.vocab}"
        )
    found = []
    for prompt in prompts:
        if not prompt:
            raise InvalidRequest("the prompt has no tokens: give a text, or token ids")
        for i in range(n):
            found.append(
                Request(
                    prompt=prompt,
                    max_tokens=tokens,
                    sampling=_sampling(service, body, i),
                    stop=stop,
                    stop_tokens=frozenset(body.stop_token_ids or ()),
                    ignore_eos=bool(body.ignore_eos),
                    logprobs=logprobs,
                    constraint=None if grammar is None else await service.grammar(*grammar),
                )
            )
    return found


def _sampling(service: Service, body: Generation, index: int) -> Sampling:
    """OpenAI's defaults; with a seed, each of n answers has its own, so that they differ."""
    bias = {}
    for token, value in (body.logit_bias or {}).items():
        known = token.isascii() and token.isdecimal() and len(token) < 10
        if not known or int(token) >= service.vocab:
            raise InvalidRequest(
                f"logit_bias has {token!r:.40}: its keys are token ids below {service.vocab}"
            )
        bias[int(token)] = value
    given = {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "min_p": body.min_p,
        "typical_p": body.typical_p,
        "repetition_penalty": body.repetition_penalty,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "logit_bias": bias or None,
        "seed": None if body.seed is None else (body.seed + index) % 2**63,
    }
    return Sampling(**{key: value for key, value in given.items() if value is not None})


async def _answered(
    service: Service, request: HttpRequest, body: Generation, asked: _Asked
) -> Response:
    """The response to a body: an object, or a stream of chunks."""
    options = body.stream_options
    if options is not None and not body.stream:
        raise InvalidRequest("stream_options goes with stream=true: add it")
    head = {
        "id": f"{asked.kind}-{uuid.uuid4().hex}",
        "object": asked.chunk if body.stream else asked.whole,
        "created": int(time.time()),
        "model": service.name,
    }
    tickets = service.submit(asked.requests)
    if body.stream:
        counted = bool(options and options.include_usage)
        events = _chunks(service, request.url.path, tickets, head, asked, counted)
        return Stream(events, tickets, service.settings)
    answers = await whole(request, tickets, service.watch)
    choices = [w.choice(a) for w, a in zip(asked.writers, answers, strict=True)]
    ends = [answer.end for answer in answers]
    return JSONResponse({**head, "choices": choices, "usage": usage(ends, asked.n)})


async def _chunks(
    service: Service,
    path: str,
    tickets: Sequence[Any],
    head: Mapping[str, Any],
    asked: _Asked,
    counted: bool,
) -> AsyncIterator[ServerSentEvent]:
    """The events of a stream; where usage is `counted` all have it, null but in the last."""
    none = {"usage": None} if counted else {}
    ends: dict[int, Done] = {}
    try:
        for writer in asked.writers:
            for choice in writer.begin():
                yield event({**head, "choices": [choice], **none})
        async with aclosing(service.watch.observed(merged(tickets))) as happened:
            async for index, each in happened:
                writer = asked.writers[index]
                if isinstance(each, Done):
                    ends[index] = each
                    choices = writer.end(each)
                else:
                    choices = writer.piece(each)
                for choice in choices:
                    yield event({**head, "choices": [choice], **none})
        if counted:
            in_order = [ends[i] for i in range(len(tickets))]
            yield event({**head, "choices": [], "usage": usage(in_order, asked.n)})
    except EngineError as error:
        yield event(problem_body(path, problem_of(error)))
    yield DONE


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "mlx-parity",
    }


def _tools(body: ChatBody) -> list[dict[str, Any]]:
    """The tools a template is shown. Raises InvalidRequest for a choice that cannot be forced."""
    choice = body.tool_choice
    if choice not in (None, "auto", "none"):
        raise InvalidRequest(
            "tool_choice: the model chooses here; say auto or none, and name the tool in the text"
        )
    if choice == "none":
        return []
    return [tool.model_dump(exclude_unset=True) for tool in body.tools or ()]


def _turn(message: Message, index: int) -> dict[str, Any]:
    """A message as templates know it: text in one piece, arguments of calls as objects."""
    turn = message.model_dump(exclude_unset=True)
    if turn["role"] == "developer":
        turn["role"] = "system"  # its older name, which templates have
    if isinstance(message.content, list):
        for part in message.content:
            if part.type not in ("text", "refusal"):
                raise InvalidRequest(
                    f"messages.{index}: content of type {part.type!r:.40} is not served; send text"
                )
        turn["content"] = "".join(part.text or part.refusal or "" for part in message.content)
    elif message.content is None and not message.tool_calls:
        raise InvalidRequest(f"messages.{index} has no content: give a text")
    else:
        turn["content"] = message.content or ""
    for call in turn.get("tool_calls") or ():
        call.setdefault("type", "function")
        call["function"]["arguments"] = arguments(call["function"]["arguments"])
    return turn


def _prompts(body: CompletionBody) -> list[str] | list[list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("prompt is an empty list: give a text, or token ids")
    return [prompt] if isinstance(prompt[0], int) else prompt  # type: ignore[return-value]


def _grammar(body: ChatBody) -> tuple[str, Any] | None:
    """The constraint a response_format asks for: its kind and its source."""
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return "json_schema", {"type": "object"}
    if asked.type == "regex":
        if asked.pattern is None:
            raise InvalidRequest("response_format.pattern is missing: give a regular expression")
        return "regex", asked.pattern
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        raise InvalidRequest("response_format.json_schema.schema is missing: give a JSON schema")
    return "json_schema", asked.json_schema.schema_
