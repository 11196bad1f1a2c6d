"""Tool calls in the text of a model, in the three shapes that are common.

- `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them (Hermes, Qwen);
- `[TOOL_CALLS]` and a JSON list of such objects, or `name[ARGS]{...}` (Mistral);
- the whole text a JSON object with "name" and "parameters", several with `;` between them, perhaps
  behind `<|python_tag|>` (Llama 3).

What only looks like a call, or names no tool there is, stays text. The pieces that a text comes in
make no difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

HERMES, HERMES_END, MISTRAL, LLAMA = "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
MARKERS = (HERMES, MISTRAL, LLAMA)
_ARGUMENTS = re.compile(r"\s*([\w.-]+)\s*(?:\[ARGS\])?\s*(?=\{)")


@dataclass(frozen=True)
class Call:
    """A tool's name and its arguments, as the text of a JSON object."""

    name: str
    arguments: str

    @property
    def input(self) -> dict[str, Any]:
        """The arguments as an object."""
        return json.loads(self.arguments)


class ToolText:
    """Text that may hold calls, as it comes. `names` are the tools there are."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._held = ""  # everything from what is, or may become, a marker on
        self._begun = False  # whether any text but spaces was seen
        self._marked = False

    def push(self, text: str) -> str:
        """The text that certainly is none of a call."""
        self._held += text
        if self._marked:
            return ""
        if not self._begun:
            if not (shown := self._held.lstrip()):
                return ""
            self._begun = True
            if shown.startswith("{"):
                self._marked = True
                return ""
        found = [at for marker in MARKERS if (at := self._held.find(marker)) >= 0]
        self._marked = bool(found)
        end = min(found) if found else len(self._held) - _beginning(self._held)
        given, self._held = self._held[:end], self._held[end:]
        return given

    def finish(self) -> tuple[str, list[Call]]:
        """The rest of the text, and the calls."""
        text, self._held = self._held, ""
        if not self._marked:
            return text, []
        return _parsed(text, self._names)


def split(text: str, names: Collection[str]) -> tuple[str, list[Call]]:
    """A whole text without its calls, and those."""
    pieces = ToolText(names)
    begin = pieces.push(text)
    rest, calls = pieces.finish()
    return begin + rest, calls


def _beginning(text: str) -> int:
    """How many characters at the end of a text may begin a marker."""
    sizes = range(min(len(text), max(map(len, MARKERS)) - 1), 0, -1)
    return next((n for n in sizes if any(m.startswith(text[-n:]) for m in MARKERS)), 0)


def _parsed(text: str, names: frozenset[str]) -> tuple[str, list[Call]]:
    """A text that begins with a marker or `{`, maybe after spaces; all of it, where it is none."""
    shown = text.lstrip()
    readers: tuple[tuple[str, Callable[[str], tuple[str, list[Any]]]], ...] = (
        (HERMES, _hermes),
        (MISTRAL, _mistral),
        (LLAMA, _llama),
        ("{", _llama),
    )
    reader = next(read for marker, read in readers if shown.startswith(marker))
    try:
        rest, values = reader(shown)
        calls = [_call(value, names) for value in values]
    except (ValueError, RecursionError):
        return text, []
    return (rest, calls) if calls else (text, [])


def _hermes(text: str) -> tuple[str, list[Any]]:
    rest, *blocks = text.split(HERMES)
    values = []
    for block in blocks:
        value, end = _json(block)
        after = block[end:].lstrip()
        values.append(value)
        rest += after.removeprefix(HERMES_END)
    return ("" if rest.isspace() else rest), values


def _mistral(text: str) -> tuple[str, list[Any]]:
    values: list[Any] = []
    for block in text.split(MISTRAL)[1:]:
        if block.lstrip().startswith("["):
            listed, end = _json(block)
            values += listed
        else:
            end = 0
            while named := _ARGUMENTS.match(block, end):
                value, end = _json(block, named.end())
                values.append({"name": named[1], "arguments": value})
        if block[end:].strip():
            raise ValueError
    return "", values


def _llama(text: str) -> tuple[str, list[Any]]:
    values, end = [], 0
    text = text.removeprefix(LLAMA)
    while True:
        value, end = _json(text, end)
        values.append(value)
        rest = text[end:].lstrip()
        if not rest:
            return "", values
        if not rest.startswith(";"):
            raise ValueError
        end = text.index(";", end) + 1


def _call(value: Any, names: frozenset[str]) -> Call:
    """One call of what JSON says it is. Raises ValueError where it is none."""
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in names:
        raise ValueError
    given = value.get("arguments", value.get("parameters", {}))
    if isinstance(given, str):
        given = json.loads(given)
    if not isinstance(given, dict):
        raise ValueError
    text = json.dumps(given, ensure_ascii=False, allow_nan=False)
    text.encode()  # an escape in JSON may say half a surrogate pair, which is no text
    return Call(name, text)


def _json(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value at a place, spaces before it passed over, and where it ends."""
    while start < len(text) and text[start].isspace():
        start += 1
    return json.JSONDecoder().raw_decode(text, start)
