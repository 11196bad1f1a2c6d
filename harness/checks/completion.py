"""Does a server take the reference's greedy tokens after a text, ties apart?"""

from __future__ import annotations

from ..comparison import Comparison
from ..policy import TIE
from ..types import FAIL, INCONCLUSIVE, PASS, SKIP, CheckResult, Divergence
from ._served import Oracle, Served, applies, hint, oracle, served

__all__ = ["ORDER", "applies", "run"]
ORDER = 92
SHOWN = 24  # characters of a text in a message


def run(comparison: Comparison) -> CheckResult:
    """The tokens of one greedy completion, by their ids or else by the text they make.

    At the first difference the oracle decides: within TIE times the reference's own rms error
    there, either token is right, and what comes after is another text, which is not compared.
    """
    name = "completion"
    s = served(comparison)
    if isinstance(s, str):
        return CheckResult(name, SKIP, s)
    o = oracle(comparison, s.probe)
    n, i = len(s.expected), s.agreed
    what = "tokens by their text" if s.told.ids is None else "tokens"
    measures = {
        "tokens": n,
        "equal": min(i, n),
        "shown_as": "text" if s.told.ids is None else "ids",
        "smallest_margin_over_noise": float(min(_margins(o))),
        "ties": 0,
    }
    if not s.differs and s.told.ids is None and not s.exact:
        text = f"after {n} tokens the text goes on, to {s.told.text[-SHOWN:]!r}"
        return _fails(name, s, text, n, measures)
    if not s.differs:
        ends = "" if s.end is None else ", and so is the end"
        verdict = PASS if o.has_oracle else INCONCLUSIVE
        return CheckResult(name, verdict, f"{n} of {n} {what} equal{ends}", measures)

    if i == n and s.taken == s.end:
        text = f"the server takes the EOS {_named(s, s.end)} after {n} tokens, and goes on"
        return _fails(name, s, text, i, measures)
    if s.ended and s.told.finish_reason not in ("stop", None):
        text = f"the server stopped after {i} of {n} tokens, by {s.told.finish_reason!r}"
        return _fails(name, s, text, i, measures)
    text = f"token {i} of {n} is {_taken(s)}, not {_named(s, (*s.expected, s.end)[i])}"
    if not o.has_oracle:
        text += ", and no oracle says how near they are"
        return CheckResult(name, INCONCLUSIVE, text, measures)
    behind = min(o.behind(i, token) for token in _may_be(s)) / o.noise[i]
    if behind <= TIE or o.loose[i] or _earlier_tie(s, o):
        measures["ties"] = 1
        return CheckResult(name, PASS, f"{i} of {n} {what} equal, then a tie: {text}", measures)
    text += f": the reference prefers its own by {behind:.0f} times the noise (a tie is {TIE:.0f})"
    return _fails(name, s, text + hint(comparison), i, measures)


def _margins(o: Oracle) -> list[float]:
    """How far the best token is ahead at every choice, over the noise there."""
    return [o.behind(i, None) / noise for i, noise in enumerate(o.noise)]


def _may_be(s: Served) -> list[int | None]:
    """Which tokens the server may have taken where it differs; None for one that is not known."""
    if s.taken is not None:
        return [s.taken]
    return list(s.eos_ids) if s.ended and s.eos_ids else [None]


def _taken(s: Served) -> str:
    if s.taken is not None:
        return _named(s, s.taken)
    if s.ended:
        return "the end"
    said = max(len(text) for text in s.spell(s.expected[: s.agreed]))
    return repr(s.told.text[said : said + SHOWN])


def _named(s: Served, token: int | None) -> str:
    return "the end" if token is None else f"{token} {s.spell([token])[0]!r}"


def _earlier_tie(s: Served, o: Oracle) -> bool:
    """Whether a text differs since a token before the first that shows it, one that begins as the
    reference's tokens do and was within noise of them."""
    if s.told.ids is not None:
        return False
    for i in range(s.agreed):
        if o.behind(i, None) <= TIE * o.noise[i]:
            other = sorted(known := o.known(o.first + i), key=lambda k: -known[k])[:2]
            ways = [text for token in other for text in s.spell((*s.expected[:i], token))]
            if any(s.told.text.startswith(text) for text in ways):
                return True
    return False


def _fails(name: str, s: Served, text: str, i: int, measures: dict) -> CheckResult:
    token = (s.probe.prompt or 0) + i
    return CheckResult(
        name, FAIL, text, measures, divergence=Divergence(name, s.probe.name, text, token=token)
    )
