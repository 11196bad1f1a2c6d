"""A tokenizer in the form in which it is asked: engine's, transformers', mlx-lm's or a server's.

What a side cannot show is None. A chat template that refuses a conversation, by whatever error,
gives REFUSED: that is an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from engine.errors import EngineError
from engine.tokenizer import Tokenizer

from ..errors import BadCandidate, ServerStopped
from .corpus import Conversation

REFUSED = "(refused)"
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """Ids of a text, and where in it each comes from; None where that is not told."""

    ids: Ids
    offsets: tuple[tuple[int, int], ...] | None = None


@dataclass(frozen=True)
class Side:
    """One tokenizer. `special` asks for tokens it adds of itself, `skip` leaves them out."""

    name: str
    encode: Callable[[str, bool], Encoded] | None = None
    count: Callable[[str], int] | None = None  # ids of a text, special ones included
    decode: Callable[[Ids, bool], str] | None = None
    stream: Callable[[Ids, bool], str] | None = None  # the pieces, joined
    render: Callable[[Conversation, bool], str] | None = None  # with a generation prompt or not
    token: Callable[[int], str | None] | None = None
    facts: Mapping[str, Any] | None = None  # bos_id, eos_ids, vocab_size, max_id
    added: Mapping[int, str] | None = None  # added tokens
    special: frozenset[int] = frozenset()


def remembering(side: Side, most: int | None = None) -> Side:
    """The same side, which does not encode or decode again what it was asked before: `most` of
    each are kept, all for None."""
    return replace(
        side,
        encode=side.encode and lru_cache(most)(side.encode),
        decode=side.decode and lru_cache(most)(side.decode),
    )


def engine_side(tokenizer: Tokenizer) -> Side:
    """`engine.tokenizer`."""

    def encode(text: str, special: bool) -> Encoded:
        ids = tokenizer.encode(text, special=special)
        return Encoded(tuple(ids), tuple(tokenizer.offsets(text, special=special)))

    def stream(ids: Ids, skip: bool) -> str:
        decoder = tokenizer.stream(skip_special=skip)
        return "".join([*map(decoder.push, ids), decoder.finish()])

    def render(c: Conversation, generation: bool) -> str:
        try:
            return tokenizer.templates.render(
                c.messages, tools=c.tools, generation=generation, **c.more
            )
        except EngineError:
            return REFUSED

    return Side(
        "engine",
        encode,
        lambda text: len(tokenizer.encode(text)),
        lambda ids, skip: tokenizer.decode(ids, skip_special=skip),
        stream,
        render if tokenizer.templates else None,
        tokenizer.token,
        {
            "bos_id": tokenizer.bos_id,
            "eos_ids": sorted(tokenizer.eos_ids),
            "vocab_size": tokenizer.vocab_size,
            "max_id": tokenizer.max_id,
        },
        tokenizer.added,
        tokenizer.special_ids,
    )


def transformers_side(tokenizer: Any, eos_ids: Sequence[int]) -> Side:
    """A tokenizer of transformers. `eos_ids` are those of tokenizer and configurations together.

    It has no streaming of its own to be judged by: what is streamed is what it decodes at once.
    """

    def encode(text: str, special: bool) -> Encoded:
        found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return Encoded(tuple(found["input_ids"]), tuple(found["offset_mapping"]))

    def decode(ids: Ids, skip: bool) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=skip)

    def render(c: Conversation, generation: bool) -> str:
        try:
            return tokenizer.apply_chat_template(
                list(c.messages),
                tools=None if c.tools is None else list(c.tools),
                add_generation_prompt=generation,
                tokenize=False,
                **c.more,
            )
        except Exception:  # templates are programs, and raise what programs raise
            return REFUSED

    added = tokenizer.added_tokens_decoder
    return Side(
        "transformers",
        encode,
        lambda text: len(tokenizer(text)["input_ids"]),
        decode,
        decode,
        render if tokenizer.chat_template else None,
        lambda id: tokenizer.convert_ids_to_tokens(id),
        {
            "bos_id": tokenizer.bos_token_id,
            "eos_ids": sorted(eos_ids),
            "vocab_size": len(tokenizer),
            "max_id": max(tokenizer.get_vocab().values(), default=-1),
        },
        {id: token.content for id, token in added.items()},
        frozenset(id for id, token in added.items() if token.special),
    )


def mlx_lm_side(wrapper: Any) -> Side:
    """mlx-lm's TokenizerWrapper: transformers' encoding, its own streaming and end of text.

    Its streaming has no way to leave special tokens out.
    """
    inner = transformers_side(wrapper._tokenizer, sorted(wrapper.eos_token_ids))

    def stream(ids: Ids, skip: bool) -> str:
        if skip:
            ids = tuple(id for id in ids if id not in inner.special)
        decoder = wrapper.detokenizer
        pieces = []
        for id in ids:
            decoder.add_token(id)
            pieces.append(decoder.last_segment)
        decoder.finalize()
        return "".join([*pieces, decoder.last_segment])

    def render(c: Conversation, generation: bool) -> str:
        try:
            return wrapper.apply_chat_template(
                list(c.messages),
                tools=None if c.tools is None else list(c.tools),
                add_generation_prompt=generation,
                tokenize=False,
                **c.more,
            )
        except Exception:
            return REFUSED

    return Side(
        "mlx-lm",
        inner.encode,
        inner.count,
        inner.decode,
        stream,
        render if wrapper.has_chat_template else None,
        inner.token,
        inner.facts,
        inner.added,
        inner.special,
    )


def server_side(server: Any, special: frozenset[int] = frozenset()) -> Side:
    """A running server, by whatever of /tokenize, /detokenize and /apply-template it answers
    (llama.cpp, vLLM), and by its count of prompt tokens. `server` is a ServerBackend.

    `special` are ids to leave out of what is decoded, since no server is asked to.
    """

    def asked(path: str, body: dict[str, Any], *keys: str) -> Any:
        answer = server.ask(path, body)
        found = answer if isinstance(answer, dict) else {}
        return next((found[key] for key in keys if key in found), None)

    def encode(text: str, special: bool) -> Encoded:
        body = {"content": text, "prompt": text, "parse_special": True}
        flags = {"add_special": special, "add_special_tokens": special}
        return Encoded(tuple(asked("/tokenize", body | flags, "tokens") or ()))

    def decode(ids: Ids, skip: bool) -> str:
        kept = [id for id in ids if not (skip and id in special)]
        return asked("/detokenize", {"tokens": kept}, "content", "prompt") or ""

    def render(c: Conversation, generation: bool) -> str:
        body = {"messages": list(c.messages), "add_generation_prompt": generation}
        if c.tools is not None:
            body["tools"] = list(c.tools)
        if c.more:
            body["chat_template_kwargs"] = c.more
        told = asked("/apply-template", body, "prompt")
        return REFUSED if told is None else told

    def count(text: str) -> int | None:
        try:
            return server.complete(text, 1).prompt_tokens
        except BadCandidate as error:
            try:  # whether it is this text alone
                server.complete_anew("a", 1)
            except BadCandidate:
                raise ServerStopped(
                    f"{server.name} answers nothing any more since it was asked to continue "
                    f"{text!a} ({error}): read its log, and start it again"
                ) from None
            raise

    known = count("a") is not None
    hello = Conversation("", "", ({"role": "user", "content": "a"},))
    return Side(
        server.name,
        encode if encode("a", False).ids else None,
        count if known else None,  # type: ignore[arg-type]
        decode
        if isinstance(asked("/detokenize", {"tokens": [0]}, "content", "prompt"), str)
        else None,
        None,
        render if render(hello, True) != REFUSED else None,
    )
