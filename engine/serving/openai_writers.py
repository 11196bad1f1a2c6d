"""How OpenAI's protocol writes one answer: of a chat or of a completion, in pieces and whole."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from .answers import Answer
from .logprobs import LogProbs
from .requests import Done, Piece
from .toolcalls import Call, ToolText


class ChatWriter:
    """One choice of a chat. `names` are the tools there are."""

    def __init__(self, index: int, names: Sequence[str], logprobs: LogProbs | None) -> None:
        self._index, self._logprobs = index, logprobs
        self._names = names
        self._tools = ToolText(names) if names else None

    def begin(self) -> list[dict[str, Any]]:
        return [self._delta({"role": "assistant", "content": ""})]

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        text = self._tools.push(piece.text) if self._tools else piece.text
        if not text and self._logprobs is None:
            return []
        return [self._delta({"content": text}, pieces=[piece])]

    def end(self, done: Done) -> list[dict[str, Any]]:
        text, calls = self._rest(done)
        found = [self._delta({"content": text})] if text else []
        if calls:
            told = [{"index": i, **call} for i, call in enumerate(_calls(calls))]
            found.append(self._delta({"tool_calls": told}))
        return [*found, self._delta({}, finish=_reason(done, calls))]

    def choice(self, answer: Answer) -> dict[str, Any]:
        begin = "".join(self._tools.push(p.text) if self._tools else p.text for p in answer.pieces)
        rest, calls = self._rest(answer.end)
        text = begin + rest
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message["tool_calls"] = _calls(calls)
            message["content"] = text if text.strip() else None
        return {
            "index": self._index,
            "message": message,
            "logprobs": self._logprobs.entries(answer.pieces) if self._logprobs else None,
            "finish_reason": _reason(answer.end, calls),
        }

    def _rest(self, done: Done) -> tuple[str, list[Call]]:
        if self._tools is None:
            return done.text, []
        begin = self._tools.push(done.text)
        rest, calls = self._tools.finish()
        return begin + rest, calls

    def _delta(
        self, delta: dict[str, Any], pieces: Sequence[Piece] = (), finish: str | None = None
    ) -> dict[str, Any]:
        told = self._logprobs.entries(pieces) if self._logprobs and pieces else None
        return {"index": self._index, "delta": delta, "logprobs": told, "finish_reason": finish}


class TextWriter:
    """One choice of a completion. `echo` is the prompt, where it is to be repeated; `in_entries`
    says that log-probabilities are written as in chats."""

    def __init__(self, index: int, echo: str, logprobs: LogProbs | None, in_entries: bool) -> None:
        self._index, self._echo = index, echo
        self._logprobs, self._in_entries = logprobs, in_entries

    def begin(self) -> list[dict[str, Any]]:
        return [self._choice(self._echo)] if self._echo else []

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        if not piece.text and self._logprobs is None:
            return []
        return [self._choice(piece.text, [piece])]

    def end(self, done: Done) -> list[dict[str, Any]]:
        return [self._choice(done.text, finish=_reason(done))]

    def choice(self, answer: Answer) -> dict[str, Any]:
        text = self._echo + answer.text
        return self._choice(text, answer.pieces, finish=_reason(answer.end))

    def _choice(
        self, text: str, pieces: Sequence[Piece] = (), finish: str | None = None
    ) -> dict[str, Any]:
        told = None
        if self._logprobs is not None and (pieces or finish):
            write = self._logprobs.entries if self._in_entries else self._logprobs.lists
            told = write(pieces)
        return {"index": self._index, "text": text, "logprobs": told, "finish_reason": finish}


def _calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in calls
    ]


def _reason(done: Done, calls: Sequence[Call] = ()) -> str:
    return "tool_calls" if calls else done.reason


def usage(ends: Sequence[Done], n: int) -> dict[str, Any]:
    """Counts of all answers; a prompt counts once for its n answers."""
    prompts = ends[::n]
    prompt = sum(done.prompt_tokens for done in prompts)
    completion = sum(done.completion_tokens for done in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(done.cached_tokens for done in prompts)},
    }
