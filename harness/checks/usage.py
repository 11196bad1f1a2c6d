"""Does a server count tokens as they are, BOS once, and say why it stopped?"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mode
from typing import TYPE_CHECKING

from ..comparison import Comparison
from ..probes import TEXTS
from ..types import FAIL, PASS, SKIP, CheckResult, Divergence, TokenFacts
from ._served import Served, applies, served

if TYPE_CHECKING:
    from ..backends.server import Completion

__all__ = ["ORDER", "applies", "run"]
ORDER = 96


def run(comparison: Comparison) -> CheckResult:
    """Tokens of every probe text, tokens of a completion, and finish_reason.

    One token is asked for after each text; empty texts are left out, since servers refuse them.
    """
    name = "usage"
    s, facts = served(comparison), comparison.reference.tokens()
    if isinstance(s, str) or facts is None:
        return CheckResult(name, SKIP, s if isinstance(s, str) else "the model has no tokenizer")
    complete = comparison.candidate.complete  # type: ignore[attr-defined]  # `applies` has looked
    wanted = {k: len(facts.ids[text]) for k, text in TEXTS.items() if text and facts.ids.get(text)}
    told: dict[str, Completion] = {label: complete(TEXTS[label], 1) for label in wanted}
    counts = {k: each.prompt_tokens for k, each in told.items() if each.prompt_tokens is not None}
    whole = s.told
    measures = {
        "texts": len(counts),
        "prompt_tokens_too_many": {k: count - wanted[k] for k, count in counts.items()},
        "asked": s.count,
        "completion_tokens": whole.completion_tokens,
        "finish_reason": whole.finish_reason,
    }
    if not counts and whole.completion_tokens is None and whole.finish_reason is None:
        return CheckResult(name, SKIP, "the server gives no counts and no finish_reason")
    problem = _prompts(counts, wanted, facts) or _sums(s, told) or _reason(s)
    if problem is not None:
        divergence = Divergence(name, s.probe.name, problem)
        return CheckResult(name, FAIL, problem, measures, divergence=divergence)
    parts = [_texts(counts, facts)]
    parts.append("no completion counts" if whole.completion_tokens is None else "completions too")
    parts.append(_reasons(s))
    return CheckResult(name, PASS, "; ".join(parts), measures)


def _prompts(counts: Mapping[str, int], wanted: Mapping[str, int], facts: TokenFacts) -> str | None:
    """What is wrong with the counts of the texts, BOS first: it is off by one everywhere."""
    more = {label: count - wanted[label] for label, count in counts.items()}
    off = [label for label in more if more[label]]
    if not off:
        return None
    usual, begins = mode(more.values()), _begins(facts)
    one = "{} token than the reference's for most texts"
    if usual == 1 and begins:
        return f"BOS is added twice: prompt_tokens has {one.format('one more')}"
    if usual == 1 and facts.bos_id is not None:
        return f"BOS is added, which it should not be: prompt_tokens has {one.format('one more')}"
    if usual == -1 and begins:
        return f"BOS is not added: prompt_tokens has {one.format('one fewer')}"
    label = off[0]
    return (
        f"prompt_tokens of {label} {TEXTS[label]!r} is {counts[label]}, not {wanted[label]}"
        f"{f', and {len(off) - 1} more texts are off' if len(off) > 1 else ''}"
    )


def _sums(s: Served, told: Mapping[str, Completion]) -> str | None:
    """What is wrong with the counts of completions, and their sums."""
    for what, asked, each in [(s.probe.name, s.count, s.told)] + [
        (label, 1, each) for label, each in told.items()
    ]:
        count, total = each.completion_tokens, each.total_tokens
        if count is None:
            continue
        if each.finish_reason == "length" and count != asked:
            return (
                f"completion_tokens after {what!r} is {count} at finish_reason 'length', and "
                f"{asked} were asked for"
            )
        if count > asked:
            return f"completion_tokens after {what!r} is {count}, and {asked} were asked for"
        if total is not None and total != (each.prompt_tokens or 0) + count:
            return f"total_tokens after {what!r} is {total}, not {each.prompt_tokens} + {count}"
    return None


def _reason(s: Served) -> str | None:
    """What is wrong with finish_reason, where the tokens are the reference's to the end."""
    wanted, found = "length" if s.end is None else "stop", s.told.finish_reason
    if s.differs or found in (wanted, None):
        return None
    why = f"all {s.count} tokens asked for were taken" if s.end is None else "EOS was taken"
    return f"finish_reason is {found!r}, not {wanted!r}: {why}"


def _begins(facts: TokenFacts) -> bool:
    """Whether the reference's tokenizer begins texts with BOS."""
    return all(ids[0] == facts.bos_id for ids in facts.ids.values() if ids)


def _texts(counts: Mapping[str, int], facts: TokenFacts) -> str:
    if not counts:
        return "no prompt counts"
    bos = "BOS once" if _begins(facts) else "no BOS"
    return f"{len(counts)} texts counted right, {bos}"


def _reasons(s: Served) -> str:
    if s.told.finish_reason is None:
        return "no finish_reason"
    if s.differs:
        return "finish_reason not asked beyond a difference"
    if s.end is None:
        return "ends by 'length', and 'stop' not asked: the reference takes no EOS"
    return "ends by 'stop' at EOS"
