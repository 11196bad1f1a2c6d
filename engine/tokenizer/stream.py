"""Text from token ids that come one by one, and where it is to stop.

However the ids arrive, the pieces together are what decoding all of them at once gives. Nothing
here knows how ids are made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from .cleanup import CleanUp

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_HALF = "\ufffd"  # what half a character decodes to
_REACH = 8  # tokens that can share a character, with room to spare


class Decodes(Protocol):
    """What a stream needs of a tokenizer."""

    clean_up: bool
    special_ids: frozenset[int]

    def raw_decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str: ...

    def token(self, id: int) -> str | None: ...


class StreamDecoder:
    """The text of ids as it becomes certain.

    Text is held back while the next id may still change it: half a character, a run of byte tokens
    (which decodes as a whole or not at all), spaces that clean-up may take away. The last ids whose
    text was given out are decoded again with those that follow, because a decoder treats the
    beginning of a text differently; work per id does not grow.
    """

    def __init__(self, tokenizer: Decodes, *, skip_special: bool = False) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._clean_up = CleanUp() if tokenizer.clean_up else None
        self._ids: list[int] = []  # the last ids given out whole, then the others
        self._given = 0  # how many of them were given out whole
        self._text = ""  # as much of their text as was given out

    def push(self, id: int) -> str:
        """The text that is certain with this id."""
        token = self._tokenizer.token(id)
        if token is None or id in self._skipped:
            return ""  # decoding passes it over
        self._ids.append(id)
        if _BYTE.fullmatch(token):
            return ""
        text = self._decode(self._ids)
        return self._cleaned(self._take(text, len(text) - text.endswith(_HALF)))

    def finish(self) -> str:
        """Whatever was held back."""
        text = self._decode(self._ids)
        rest = self._cleaned(self._take(text, len(text)))
        return rest + (self._clean_up.finish() if self._clean_up else "")

    def _take(self, text: str, end: int) -> str:
        """The part of the ids' `text` before `end` that was not given out yet."""
        if not text.startswith(self._text):
            return ""  # a decoder that looks ahead; `finish` gives it
        new = text[len(self._text) : end]
        self._text = text[:end]
        if end < len(text):
            if len(self._ids) > 2 * _REACH:  # halves without end: no character is that long
                self._ids, self._given = self._ids[-_REACH:], 0
                self._text = self._decode(self._ids)[:-1]
        elif new:
            self._ids = self._ids[self._given :]
            self._given = len(self._ids)
            self._text = self._decode(self._ids)
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.raw_decode(ids, skip_special=self._skip_special)

    def _cleaned(self, text: str) -> str:
        return self._clean_up.push(text) if self._clean_up else text


class StopStrings:
    """Text up to the first of some strings, which itself is not given out.

    First is the one that is complete first, and of those that end together the longest; so the
    pieces a text comes in make no difference. `stopped` is the string that was found.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        """Empty strings stop nothing."""
        self._strings = tuple(sorted(filter(None, strings), key=len, reverse=True))
        self._held = ""  # what may be the beginning of a string
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """The text that is certainly before any stop; '' once one was found."""
        if self.stopped is not None:
            return ""
        whole, self._held = self._held + text, ""
        ends = {s: whole.find(s) + len(s) for s in self._strings if s in whole}
        if ends:
            self.stopped = min(ends, key=lambda string: ends[string])
            return whole[: ends[self.stopped] - len(self.stopped)]
        keep = self._beginning(whole)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep]

    def finish(self) -> str:
        """What was held back and turned out to be no stop."""
        text, self._held = self._held, ""
        return text

    def _beginning(self, text: str) -> int:
        """How many characters at the end of a text may begin a string."""
        longest = max((len(string) - 1 for string in self._strings), default=0)
        sizes = range(min(longest, len(text)), 0, -1)
        tails = ((size, text[len(text) - size :]) for size in sizes)
        return next((n for n, tail in tails if any(s.startswith(tail) for s in self._strings)), 0)
