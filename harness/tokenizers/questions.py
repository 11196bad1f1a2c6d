"""The questions put to two tokenizers: a function of one side and one input, whose values must be
equal. Nothing here judges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .corpus import Conversation
from .sides import REFUSED, Encoded, Ids, Side

TEXT, PROMPT, SPELT, WALK, CHAT = "text", "prompt", "ids of a probe", "ids", "conversation"


@dataclass(frozen=True)
class Question:
    """`of(side, input)` is asked of inputs of one kind; `needs` are the parts of a side it uses."""

    name: str
    what: str
    kind: str
    needs: tuple[str, ...]
    of: Callable[[Side, Any], Any]


def _ids(side: Side, text: str) -> tuple[Ids, Ids]:
    return _encode(side, text, True).ids, _encode(side, text, False).ids


def _offsets(side: Side, text: str) -> Any:
    return _encode(side, text, True).offsets


def _round_trip(side: Side, text: str) -> tuple[str, str]:
    ids = _encode(side, text, True).ids
    return _decode(side, ids, False), _decode(side, ids, True)


def _decoded(side: Side, ids: Ids) -> tuple[str, str]:
    return _decode(side, ids, False), _decode(side, ids, True)


def _streamed(side: Side, ids: Ids) -> tuple[str, str]:
    assert side.stream is not None
    return side.stream(ids, False), side.stream(ids, True)


def _streamed_on(side: Side, ids: Ids) -> str:
    """Loosely: some leave out the space that a text begins with."""
    assert side.stream is not None
    return side.stream(ids, True).removeprefix(" ")


def _rendered(side: Side, conversation: Conversation) -> tuple[str, str]:
    assert side.render is not None
    return side.render(conversation, False), side.render(conversation, True)


def _chat_ids(side: Side, conversation: Conversation) -> Any:
    text = _rendered(side, conversation)[1]
    return REFUSED if text == REFUSED else _encode(side, text, False).ids


def _count(side: Side, text: str) -> int:
    assert side.count is not None
    return side.count(text)


def _encode(side: Side, text: str, special: bool) -> Encoded:
    assert side.encode is not None
    return side.encode(text, special)


def _decode(side: Side, ids: Ids, skip: bool) -> str:
    assert side.decode is not None
    return side.decode(ids, skip)


QUESTIONS = (
    Question("ids", "token ids, with special tokens and without", TEXT, ("encode",), _ids),
    Question("offsets", "where each id comes from", TEXT, ("encode",), _offsets),
    Question("count", "how many ids a prompt has", PROMPT, ("count",), _count),
    Question("round trip", "the text of its ids", TEXT, ("encode", "decode"), _round_trip),
    Question("decode", "the text of any ids", WALK, ("decode",), _decoded),
    Question("streaming", "the same, id by id", WALK, ("stream",), _streamed),
    Question("template", "a conversation as text, byte for byte", CHAT, ("render",), _rendered),
    Question("chat", "a conversation as ids", CHAT, ("render", "encode"), _chat_ids),
)
# What the check of a whole comparison asks: it is about what a model is fed. Of streaming, only the
# texts of its probes: not what no model writes.
ASKED_OF_MODELS = (
    *(question for question in QUESTIONS if question.kind != WALK and question.name != "count"),
    Question("streaming", "the text of ids, id by id", SPELT, ("stream",), _streamed_on),
)
