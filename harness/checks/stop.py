"""Does a server stop at a stop string, wherever in a token that begins or ends?"""

from __future__ import annotations

from ..comparison import Comparison
from ..types import FAIL, INCONCLUSIVE, PASS, SKIP, CheckResult, Divergence
from ._served import Served, applies, served

__all__ = ["ORDER", "applies", "run"]
ORDER = 98
LEAST = 8  # characters before a stop string, so that there is a text to cut


def run(comparison: Comparison) -> CheckResult:
    """The text ends before the stop string, and finish_reason says so.

    Two strings out of the server's own greedy text are asked for: one made of whole tokens, and one
    that begins and ends inside tokens.
    """
    name = "stop"
    s = served(comparison)
    if isinstance(s, str):
        return CheckResult(name, SKIP, s)
    if s.told.finish_reason is None:
        return CheckResult(name, SKIP, "the server gives no finish_reason")
    strings = _strings(s)
    if not strings:
        return CheckResult(
            name, SKIP, "no string to stop at in the tokens that are the reference's"
        )
    complete = comparison.candidate.complete  # type: ignore[attr-defined]  # `applies` has looked
    measures, problems = {"strings": list(strings.values())}, []
    for kind, string in strings.items():
        told = complete(s.prompt, s.count, string)
        right = s.told.text[: s.told.text.find(string)]
        what = f"at the stop string {string!r}, {kind},"
        if not (told.text.startswith(right) or right.startswith(told.text)):
            reason = f"{what} the text is another than without it, so that nothing can be said"
            return CheckResult(name, INCONCLUSIVE, reason, measures)
        if len(told.text) > len(right):
            more = len(told.text) - len(right)
            problems.append(
                f"{what} the text goes on for {more} characters, to {told.finish_reason!r}"
            )
        elif told.text != right:
            problems.append(f"{what} the text ends {len(right) - len(told.text)} characters early")
        elif told.finish_reason not in ("stop", None):
            problems.append(f"{what} finish_reason is {told.finish_reason!r}, not 'stop'")
    if problems:
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        divergence = Divergence(name, s.probe.name, problems[0])
        return CheckResult(name, FAIL, problems[0] + more, measures, divergence=divergence)
    return CheckResult(name, PASS, f"stops at {_and(strings)}", measures)


def _strings(s: Served) -> dict[str, str]:
    """Stop strings by kind, from about the middle of the text."""
    text, found = s.told.text, {}
    n = min(s.agreed, len(s.expected))
    pieces = [s.spell(s.expected[i : i + 1])[0] for i in range(n)]
    for i in [*range(n // 2, n - 1), *range(n // 2)]:
        first, second = pieces[i], pieces[i + 1]
        if _usable(first, text):
            found.setdefault("a token of its own", first)
        if len(first) > 1 and len(second) > 1 and _usable(first[1:] + second[:-1], text):
            found.setdefault("which begins and ends inside tokens", first[1:] + second[:-1])
    return found


def _usable(string: str, text: str) -> bool:
    """Whether a string can be looked for: ordinary characters, not at once."""
    plain = len(string) > 1 and string.isascii() and string == string.strip()
    return plain and text.find(string) >= LEAST


def _and(strings: dict[str, str]) -> str:
    return " and ".join(f"{string!r}, {kind}" for kind, string in strings.items())
