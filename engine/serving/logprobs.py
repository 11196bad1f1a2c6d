"""Log-probabilities as OpenAI writes them: entries for chats, lists side by side for completions.

A token's text is what it adds behind the token before it, so that texts joined are the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .requests import Piece, Request

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

_HALF = "\ufffd"  # what half a character decodes to


class LogProbs:
    """Writes the tokens of one answer, in their order."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self._tokenizer, self._last, self._offset = tokenizer, request.prompt[-1], 0
        # As with OpenAI, the token that ends an answer is none of its tokens.
        eos = frozenset() if request.ignore_eos else tokenizer.eos_ids
        self._ends = request.stop_tokens | eos

    def entries(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """{"content": [...]} of chats; `id`, which OpenAI lacks, is the token's."""
        content = []
        for piece in self._own(pieces):
            best = [self._entry(id, logprob) for id, logprob in piece.best]
            content.append({**self._entry(piece.token, piece.logprob), "top_logprobs": best})
            self._last = piece.token
        return {"content": content, "refusal": None}

    def lists(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """The four lists of completions."""
        tokens, logprobs, best, offsets = [], [], [], []
        for piece in self._own(pieces):
            text = self._text(piece.token)
            tokens.append(text)
            logprobs.append(_finite(piece.logprob))
            best.append({self._text(id): _finite(logprob) for id, logprob in piece.best})
            offsets.append(self._offset)
            self._offset += len(text)
            self._last = piece.token
        return {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": best,
            "text_offset": offsets,
        }

    def _own(self, pieces: Iterable[Piece]) -> list[Piece]:
        return [piece for piece in pieces if piece.token not in self._ends]

    def _entry(self, id: int, logprob: float | None) -> dict[str, Any]:
        text = self._text(id)
        # Bytes of half a character are not known from its text.
        data = None if _HALF in text else list(text.encode())
        return {"id": id, "token": text, "logprob": _finite(logprob), "bytes": data}

    def _text(self, id: int) -> str:
        before = self._tokenizer.raw_decode([self._last])
        both = self._tokenizer.raw_decode([self._last, id])
        return both[len(before) :] if both.startswith(before) else self._tokenizer.decode([id])


def _finite(logprob: float | None) -> float | None:
    """JSON has no infinity; OpenAI writes -9999.0 for what cannot happen."""
    return logprob if logprob is None else max(logprob, -9999.0)
