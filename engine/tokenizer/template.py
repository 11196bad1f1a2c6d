"""Chat templates: a conversation becomes the text that a model was trained on.

What a template sees is what transformers shows it: plain JSON values, without keys that are None,
and the special tokens by name. It runs in the sandbox of `sandbox.py`.
Sources: apply_chat_template, get_chat_template and render_jinja_template of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidPrompt, InvalidTemplate, one_line
from .settings import DEFAULT

if TYPE_CHECKING:
    from .sandbox import Limits

WITH_TOOLS = "tool_use"  # the name of the template that conversations with tools get
_REASONING = ("reasoning_content", "thinking", "reasoning")  # one thing under several names


class Templates:
    """The chat templates of a model by name, most often one alone."""

    def __init__(
        self,
        sources: Mapping[str, str],
        tokens: Mapping[str, str],
        where: Path | str = "the model",
        limits: Limits | None = None,
    ) -> None:
        """`tokens` are special tokens by name, as templates know them: `bos_token` and its like."""
        self.sources, self.tokens = dict(sources), dict(tokens)
        self._where, self._limits = where, limits

    def __bool__(self) -> bool:
        return bool(self.sources)

    def limited(self, limits: Limits) -> Templates:
        """The same templates under other limits."""
        return Templates(self.sources, self.tokens, self._where, limits)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        generation: bool = False,
        template: str | None = None,
        **more: Any,
    ) -> str:
        """The text of a conversation.

        `generation` asks for the beginning of an answer, `template` for one of several by name;
        `more` are variables that only some templates know. Raises InvalidPrompt where the
        conversation is none or the template refuses it, InvalidTemplate where there is no template,
        or it fails.
        """
        name = self._chosen(template, tools)
        variables = {
            **self.tokens,
            **more,
            "messages": _conversation(messages),
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": generation,
        }
        return self._run(name, {key: plain(value) for key, value in variables.items()})

    def _run(self, name: str, variables: Mapping[str, Any]) -> str:
        from .sandbox import Limits, Refusal, Sandbox

        try:
            sandbox = Sandbox(self._limits or Limits())
            return sandbox.rendered(self.sources[name], variables)
        except Refusal as refusal:
            raise InvalidPrompt(
                f"the chat template of {self._where} refuses the conversation: {one_line(refusal)}"
            ) from None
        except Exception as cause:  # templates are programs, and raise what programs raise
            kind = type(cause).__name__
            line = getattr(cause, "lineno", None)
            place = f"{name!r}, line {line}" if line else repr(name)
            raise InvalidTemplate(
                f"the chat template {place} of {self._where} fails ({kind}: {one_line(cause)}): "
                "correct it, or leave out of the conversation what it does not know"
            ) from None

    def _chosen(self, name: str | None, tools: object) -> str:
        if not self.sources:
            raise InvalidTemplate(
                f"{self._where} has no chat template: put chat_template.jinja beside the "
                "tokenizer, or give a prompt as text"
            )
        if name is None:
            name = WITH_TOOLS if tools is not None and WITH_TOOLS in self.sources else DEFAULT
        if name not in self.sources:
            known = ", ".join(sorted(self.sources))
            raise InvalidTemplate(
                f"{self._where} has no chat template {name!r}: there are {known}; name one"
            )
        return name


def plain(value: Any) -> Any:
    """A value as JSON has it; in place of what JSON has no form for, the name of its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):  # subclasses may bring methods that write files
        if isinstance(value, kind):
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(plain, value))
    return f"<{type(value).__name__}>"


def _conversation(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not messages:
        raise InvalidPrompt("the conversation is empty: give at least one message")
    found = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidPrompt(
                f"message {i} is {message!r:.60}: give objects with role and content"
            )
        message = {key: value for key, value in message.items() if value is not None}
        thought = next((message[key] for key in _REASONING if key in message), None)
        if thought is not None:
            message = {"thinking": thought, **message, "reasoning_content": thought}
        found.append(message)
    return found
