"""The tokenizer by itself, as llama.cpp's server shows it: /tokenize, /detokenize, /apply-template.

As there, unknown fields are ignored. Messages reach the template as they are; the chats of other
protocols are read more strictly. With these `harness tokenizer --candidate URL` can ask everything.
Source: tools/server/README.md of github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from ..errors import InvalidRequest
from .answers import unless_gone
from .service import Service


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class TokenizeBody(Body):
    """POST /tokenize. `add_special` adds what the tokenizer adds of itself, such as BOS."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    """POST /detokenize. An id without a token is passed over."""

    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


class TemplateBody(Body):
    """POST /apply-template."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None


def routes(service: Service) -> APIRouter:
    """The routes of the tokenizer."""
    router = APIRouter(tags=["tokenizer"])

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> JSONResponse:
        """The ids of a text."""
        if body.with_pieces:
            raise InvalidRequest("with_pieces: ids alone are told; /detokenize gives their text")
        if not body.parse_special:
            raise InvalidRequest("parse_special=false: special tokens in a text are always found")
        encode = service.tokenizer.encode
        ids = await asyncio.to_thread(encode, body.content, special=body.add_special)
        return JSONResponse({"tokens": ids})

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> JSONResponse:
        """The text of ids, special tokens included."""
        return JSONResponse(
            {"content": await asyncio.to_thread(service.tokenizer.decode, body.tokens)}
        )

    @router.post("/apply-template")
    async def apply_template(body: TemplateBody, request: HttpRequest) -> JSONResponse:
        """The text of a conversation by the model's chat template."""
        rendered = service.rendered(
            body.messages,
            tools=body.tools,
            generation=body.add_generation_prompt,
            more=body.chat_template_kwargs,
        )
        return JSONResponse({"prompt": await unless_gone(request, rendered)})

    return router
