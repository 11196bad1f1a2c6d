"""The text of an answer as its tokens come: where it ends, and what of it is certain.

Nothing here knows how tokens are made, or where the text goes.
"""

from __future__ import annotations

from collections.abc import Iterable

from .tokenizer import StopStrings, Tokenizer


class Answer:
    """Text without end tokens, up to the first of some strings.

    `stopped_by` is the end token or the string that ended it, None so far.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Iterable[str] = (), *, skip_special: bool = False
    ) -> None:
        """`skip_special` leaves special tokens out of the text."""
        self._ends = tokenizer.eos_ids
        self._text = tokenizer.stream(skip_special=skip_special)
        self._stop = StopStrings(stop)
        self.stopped_by: str | int | None = None

    def push(self, token: int) -> str:
        """The text that is certain with this token."""
        if token in self._ends:
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
