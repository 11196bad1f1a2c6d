"""What the protocols share: one model by its name, prompts of texts and chats, tickets.

Works that take long (templates, tokenizing, grammars) run in threads, beside the event loop.
Nothing here knows how a protocol writes things.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidRequest, ModelNotServed
from .answers import cancel
from .settings import Settings
from .watch import Watch

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer
    from .requests import Request

ANY_NAME = frozenset({"", "default"})  # clients that must say something
_RESERVED = frozenset({"messages", "tools", "template", "generation", "documents"})


@dataclass
class Service:
    """One model behind a worker. `vocab` is the number of rows of its head."""

    name: str
    worker: Any
    tokenizer: Tokenizer
    vocab: int
    settings: Settings = field(default_factory=Settings)
    created: int = field(default_factory=lambda: int(time.time()))
    aliases: frozenset[str] = frozenset()  # other names of the model
    details: Mapping[str, Any] = field(default_factory=dict)  # for those who list models
    closing: bool = False
    conversations: int = 0  # on WebSockets, which uvicorn does not let finish

    def __post_init__(self) -> None:
        self.watch = Watch(self.worker)
        self._templates = self.tokenizer.templates.limited(self.settings.template)

    def check_name(self, name: str | None) -> None:
        """Raise ModelNotServed unless `name` is the model's, or says that any will do."""
        if (name or "") not in ANY_NAME | {self.name} | self.aliases:
            raise ModelNotServed(
                f"no model {name!r:.100} here: {self.name!r} is served, and 'default' means it"
            )

    def tokens(self, asked: int | None, default: int | None = None) -> int:
        """How many tokens an answer may have. Raises InvalidRequest beyond the server's limit."""
        most = self.settings.max_tokens
        if asked is None:
            return min(default or most, most)
        if asked > most:
            raise InvalidRequest(f"max_tokens {asked}: this server gives at most {most}")
        return asked

    async def text(self, text: str) -> tuple[int, ...]:
        """The ids of a plain text, BOS once where the tokenizer adds it."""
        return tuple(await asyncio.to_thread(self.tokenizer.prompt, text))

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        begun: str = "",
        more: Mapping[str, Any] | None = None,
    ) -> tuple[int, ...]:
        """The ids of a conversation by the model's template; `begun` is how the answer begins.

        `more` are variables of the template. Raises InvalidPrompt, InvalidTemplate, InvalidRequest.
        """
        text = await self.rendered(messages, tools=tools, more=more) + begun
        return tuple(await asyncio.to_thread(self.tokenizer.encode, text, special=False))

    async def rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation: bool = True,
        more: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation; `generation` asks for the beginning of an answer."""
        if taken := sorted(_RESERVED & set(more or ())):
            raise InvalidRequest(f"chat_template_kwargs.{taken[0]} has a field of its own")
        render = self._templates.render
        return await asyncio.to_thread(
            render, messages, tools=tools, generation=generation, **(more or {})
        )

    async def grammar(self, kind: str, source: Any) -> Any:
        """A compiled constraint: `kind` is "json_schema" or "regex". Raises InvalidRequest."""
        from ..constraint import Constraint

        build = getattr(Constraint, kind)
        return await asyncio.to_thread(build, source, self.tokenizer, self.vocab)

    @contextmanager
    def conversation(self) -> Iterator[None]:
        """Count a WebSocket while it is answered."""
        self.conversations += 1
        try:
            yield
        finally:
            self.conversations -= 1

    def submit(self, requests: Sequence[Request]) -> list[Any]:
        """Tickets for all requests or, where the queue has no room for all, for none."""
        tickets: list[Any] = []
        try:
            for request in requests:
                tickets.append(self.worker.submit(request))
        except BaseException:
            cancel(tickets)
            raise
        return tickets


def stop_strings(stop: str | Sequence[str] | None, most: int) -> tuple[str, ...]:
    """Stop strings as a tuple. Raises InvalidRequest for too many or an empty one."""
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > most:
        raise InvalidRequest(f"{len(found)} stop strings: at most {most} are looked for")
    if "" in found:
        raise InvalidRequest("a stop string is empty: it would end every text before it begins")
    return found


def arguments(text: str) -> Any:
    """A tool call's arguments as templates want them: an object where the text is one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def served_name(model: str) -> str:
    """What a model is called: a Hub id as it is, a folder or a file by its last part."""
    path = Path(model).expanduser()
    return (path.resolve().name if path.exists() else model) or model
