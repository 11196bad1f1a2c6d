"""The text of an answer as its tokens come: where it ends, and what of it is certain.

Nothing here knows how tokens are made, or where the text goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

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
