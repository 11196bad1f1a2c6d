"""Clean-up: spaces taken away before punctuation, as transformers does it where it is asked to.

Source: PreTrainedTokenizerBase.clean_up_tokenization of transformers 5.23. The replacements are
made one after the other, each over the whole text.
"""

from __future__ import annotations

_REPLACED = {
    **{f" {mark}": mark for mark in ".?!,"},
    " ' ": "'",
    **{f" {end}": end for end in ("n't", "'m", "'s", "'ve", "'re")},
}
_REACH = max(map(len, _REPLACED)) - 1  # characters of one replaced text before its last


def cleaned(text: str) -> str:
    """A text after all replacements."""
    for old, new in _REPLACED.items():
        text = text.replace(old, new)
    return text


class CleanUp:
    """The same of a text that comes in pieces.

    Every replaced text begins with a space, and only spaces are taken away. So nothing reaches
    across a place that no space lies in front of, as near as a replaced text is long: both sides
    of it can be cleaned by themselves.
    """

    def __init__(self) -> None:
        self._held = ""
        self._before = ""  # what came before, as far as it matters

    def push(self, text: str) -> str:
        """What is certain now."""
        whole, start = self._before + self._held + text, len(self._before)
        for end in range(len(whole), start, -1):
            if " " not in whole[max(0, end - _REACH) : end]:
                self._held = whole[end:]
                self._before = whole[max(0, end - _REACH) : end]
                return cleaned(whole[start:end])
        self._held += text
        return ""

    def finish(self) -> str:
        """Whatever was held back."""
        text, self._held = cleaned(self._held), ""
        return text
