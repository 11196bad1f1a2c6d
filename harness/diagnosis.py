"""From the pattern of what failed to a likely cause, in one sentence with its evidence.

Source: docs/METHOD.md, "From pattern to cause". A pattern is a function from the facts of a verdict
to a sentence or None; the first that gives one speaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from functools import cached_property

from .answers import culprit
from .types import FAIL, ISOLATED, PROPAGATED, CheckResult, SiteDiff, Verdict


def diagnose(verdict: Verdict) -> str | None:
    """What the failures of a verdict have in common; None where nothing failed."""
    facts = Facts(verdict)
    if not facts.failed:
        return None
    return next(filter(None, (pattern(facts) for pattern in PATTERNS)), None)


class Facts:
    """What is off, sorted by where it shows. Only the first rung that failed is looked at."""

    def __init__(self, verdict: Verdict) -> None:
        dtype = next((c.dtype for c in verdict.checks if c.verdict == FAIL), None)
        self.failed: dict[str, CheckResult] = {
            c.name: c for c in verdict.checks if c.verdict == FAIL and c.dtype == dtype
        }
        self.sites = [d for d in verdict.sites if d.dtype == dtype and d.judged]
        self.inner = [d for d in verdict.sites if d.dtype == dtype and d.site.kind == "module"]
        self.off = [d for d in self.sites if d.verdict == FAIL]

    def where(self, kind: str, mode: str | None = None) -> list[SiteDiff]:
        """What is off at sites of a kind."""
        return [d for d in self.off if d.site.kind == kind and mode in (None, d.mode)]

    @cached_property
    def blocks(self) -> set[int]:
        """Blocks there are."""
        found = (d.site.block for d in self.sites if d.mode == ISOLATED)
        return {block for block in found if block is not None}

    @cached_property
    def dirty(self) -> set[int]:
        """Blocks that are off on the reference's own input."""
        found = (d.site.block for d in self.where("block", ISOLATED))
        return {block for block in found if block is not None}

    @cached_property
    def module(self) -> str | None:
        """The first module off inside the first block that is."""
        block = min(self.dirty, default=None)
        found = culprit([d for d in self.inner if d.site.block == block])
        return found.site.part if found else None

    @cached_property
    def late(self) -> int | None:
        """The token at which every failing probe goes wrong, where it is one and the same.

        The first two say nothing: a wrong scale cannot show before there are two to attend to.
        """
        tokens = {d.token for d in self.where("block", ISOLATED)}
        token = next(iter(tokens)) if len(tokens) == 1 else None
        return token if token is not None and token > 1 else None


def _weights(facts: Facts) -> str | None:
    if "weights" in facts.failed:
        return f"a parameter is not the reference's: {facts.failed['weights'].reason}"
    return None


def _not_finite(facts: Facts) -> str | None:
    wild = [d for d in facts.off if not math.isfinite(d.ratio) and d.note is None]
    if not wild:
        return None
    site = wild[0].site.path
    return f"{site} is not finite where the reference is: overflow, a fully masked row, or 0/0"


def _embedding(facts: Facts) -> str | None:
    off = facts.where("embedding")
    if not off:
        return None
    what = "embedding, its scale, positions, or the tokens"
    return f"what enters block 0 is off ({_sizes(off)}): {what}"


def _blind(facts: Facts) -> str | None:
    if facts.blocks or not {"logits", "head", "distribution"} & set(facts.failed):
        return None
    return "the logits are off, and the candidate shows no blocks, so no place can be named"


def _late(facts: Facts) -> str | None:
    if not facts.dirty or facts.late is None:
        return None
    where = _blocks(facts.dirty)
    return (
        f"{where} right up to token {facts.late} and off from there "
        f"({_sizes(facts.where('block', ISOLATED))}): mask, window or rotary scaling"
    )


def _shared(facts: Facts) -> str | None:
    if len(facts.blocks) < 2 or facts.dirty != facts.blocks:
        return None
    inside = f", first in {facts.module}" if facts.module else ""
    return (
        f"every block is off alike ({_sizes(facts.where('block', ISOLATED))}{inside}): "
        "a constant they share (epsilon, rotary base, scale, norm offset, dtype)"
    )


def _some(facts: Facts) -> str | None:
    if not facts.dirty:
        return None
    sizes = _sizes(facts.where("block", ISOLATED))
    inside = f", first in {facts.module}" if facts.module else ""
    return f"{_blocks(facts.dirty)} off on the reference's own input ({sizes}{inside})"


def _end(facts: Facts) -> str | None:
    off = [d for d in facts.off if d.mode == ISOLATED]
    if not off and not set(facts.failed) <= {"logits", "head", "distribution"}:
        return None
    if not off and facts.where("block", PROPAGATED):
        return None
    where = "last norm" if facts.where("norm", ISOLATED) else "head, tied weights, cap or scale"
    return f"blocks are clean and logits are not ({_sizes(off)}): {where}" if off else (
        f"blocks are clean and logits are not: {where}"
    )  # fmt: skip


def _routes(facts: Facts) -> str | None:
    """Right in one pass of one row, wrong by another route."""
    causes = {
        "cache": "wrong in pieces: cache, offsets or the mask of a later chunk",
        "batch": "wrong in a batch: padding, its mask, positions, or rows that mix",
        "repeat": "another answer when asked again: state that outlives a call",
        "greedy": "other tokens when it generates: the decode step, its cache or its offsets",
    }
    names = [name for name in causes if name in facts.failed]
    if not names or set(facts.failed) - set(causes):
        return None
    return f"right in one pass, and {causes[names[0]]}"


def _tokens(facts: Facts) -> str | None:
    if set(facts.failed) == {"tokens"}:
        why = facts.failed["tokens"].reason
        return f"the model computes what it should; its tokenizer does not: {why}"
    return None


def _travels(facts: Facts) -> str | None:
    off = [d for d in facts.off if d.mode == PROPAGATED]
    if not off:
        return None
    return (
        f"every part is right on its own, and errors grow on the way ({_sizes(off)}): "
        "what passes between blocks, or rounding that adds up"
    )


Pattern = Callable[[Facts], str | None]
PATTERNS: tuple[Pattern, ...] = (
    _weights, _not_finite, _embedding, _blind, _late, _shared, _some, _end, _routes, _tokens,
    _travels,
)  # fmt: skip


def _sizes(diffs: Iterable[SiteDiff]) -> str:
    ratios = [d.ratio for d in diffs]
    low, high = min(ratios), max(ratios)
    if not math.isfinite(high):
        return "not finite"
    if f"{low:.2g}" == f"{high:.2g}":
        return f"{high:.2g} times the noise"
    return f"{low:.2g} to {high:.2g} times the noise"


def _blocks(found: Collection[int]) -> str:
    """ "block 3 is", "blocks 1, 4 are"."""
    numbers = sorted(found)
    shown = ", ".join(map(str, numbers[:6])) + (" ..." if len(numbers) > 6 else "")
    return f"block {shown} is" if len(numbers) == 1 else f"blocks {shown} are"
