"""The text of an answer as its tokens come: where it ends, and what of it is certain.

Nothing here knows how tokens are made, or where the text goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .errors import InvalidRequest
from .tokenizer import StopStrings, Tokenizer


class Answer:
    """Text without end tokens, up to the first of some strings.

    `stopped_by` is the end token or the string that ended it, None so far.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Iterable[str] = (),
        *,
        ends: Collection[int] | None = None,
        skip_special: bool = False,
    ) -> None:
        """`ends` are the end tokens where they are not the tokenizer's own; `skip_special` leaves
        special tokens out of the text."""
        self.ends = tokenizer.eos_ids if ends is None else ends
        self._text = tokenizer.stream(skip_special=skip_special)
        self._stop = StopStrings(stop)
        self.stopped_by: str | int | None = None

    def push(self, token: int) -> str:
        """The text that is certain with this token."""
        if token in self.ends:
            self.stopped_by = token
            return ""
        return self._before_stop(self._text.push(token))

    def finish(self) -> str:
        """What was held back and is certain now that no token follows."""
        return self._before_stop(self._text.finish()) + self._stop.finish()

    def _before_stop(self, text: str) -> str:
        text = self._stop.push(text)
        self.stopped_by = self._stop.stopped or self.stopped_by
        return text


def stop_tokens(given: Iterable[str], tokenizer: Tokenizer, vocab: int) -> frozenset[int]:
    """Tokens as people name them, by their ids or as texts of one token. Raises InvalidRequest."""
    found = set()
    for each in given:
        ids = (
            [int(each)]
            if each.isdecimal() and len(each) < 12
            else tokenizer.encode(each, special=False)
        )
        if len(ids) != 1:
            raise InvalidRequest(
                f"stop token {each!r:.40} is {len(ids)} tokens: give the id or the text of one, or "
                "a stop string"
            )
        if ids[0] >= vocab:
            raise InvalidRequest(f"stop token {ids[0]} is outside the vocabulary of {vocab} rows")
        found |= set(ids)
    return frozenset(found)
