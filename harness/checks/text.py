"""Is a server's text what its tokens are written as?"""

from __future__ import annotations

from ..comparison import Comparison
from ..types import FAIL, PASS, SKIP, CheckResult, Divergence
from ._served import applies, begins_with, is_text, served

__all__ = ["ORDER", "applies", "run"]
ORDER = 93
AROUND = 12  # characters shown on each side of a difference


def run(comparison: Comparison) -> CheckResult:
    """The text of the tokens that are the reference's, against that of the model's tokenizer.

    Prompt and text together are the whole text, so that a space at the beginning counts.
    """
    name = "text"
    s = served(comparison)
    if isinstance(s, str):
        return CheckResult(name, SKIP, s)
    n = min(s.agreed, len(s.expected))
    if not n:
        return CheckResult(name, SKIP, "no token is the reference's")
    ways = s.spell(s.expected[:n])
    right = begins_with if s.differs or s.told.ids is None else is_text
    if right(s.told.text, ways, strictly=True):
        return CheckResult(name, PASS, f"that of {n} tokens, {len(ways[0])} characters")
    what = "lacks the space it begins with" if right(s.told.text, ways) else "differs"
    message = f"the text of {n} right tokens {what}: {_near(s.told.text, ways[0])}"
    divergence = Divergence(name, s.probe.name, message)
    return CheckResult(name, FAIL, message, divergence=divergence)


def _near(actual: str, expected: str) -> str:
    """Two texts around their first difference."""
    pairs = zip(actual, expected, strict=False)
    at = next((k for k, (a, e) in enumerate(pairs) if a != e), min(len(actual), len(expected)))
    part = slice(max(0, at - AROUND), at + AROUND)
    return f"{actual[part]!r}, not {expected[part]!r}"
