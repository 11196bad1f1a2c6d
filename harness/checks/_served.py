"""What the checks of servers share: the reference's continuation of a text, what a server said when
it was asked for the same, and how far they agree.

A server shows the ids of its tokens, or their texts, or its text alone; each is compared as far as
it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from engine.tokenizer import Tokenizer, load_tokenizer

from ..comparison import Comparison
from ..metrics import FLOOR
from ..scores import Scores
from ..ties import Ties
from ..types import PROPAGATED, Probe

if TYPE_CHECKING:
    from ..backends.server import Completion

Spell = Callable[[Sequence[int]], list[str]]
_HALF = "\ufffd"  # what half a character is shown as


@dataclass(frozen=True)
class Served:
    """One answer of a server beside the reference's own.

    `expected` are the reference's tokens, up to `end`, the EOS it takes where it takes one of
    `eos_ids`; `count` were asked for. `agreed` is how many tokens the server shares from the first
    on, the end among them, as its ids or else its text show; `taken` is the id of its next one,
    where it shows that. `exact` says whether its text is that of all expected tokens and no more,
    and `aligned` how many log-probabilities are of tokens known to be the reference's.
    """

    probe: Probe
    prompt: str
    count: int
    expected: tuple[int, ...]
    end: int | None
    eos_ids: tuple[int, ...]
    told: Completion
    spell: Spell
    agreed: int
    taken: int | None
    exact: bool
    aligned: int

    @property
    def differs(self) -> bool:
        """Whether any token, or the end, is another than the reference's."""
        return self.agreed < len(self.expected) + (self.end is not None)

    @property
    def ended(self) -> bool:
        """Whether the server took nothing at all where it differs."""
        if self.told.ids is not None:
            return self.taken is None
        return is_text(self.told.text, self.spell(self.expected[: self.agreed]))


@dataclass(frozen=True)
class Oracle:
    """What every choice is judged by, one row for each token after the prompt.

    `noise` (n,) is the reference's rms error of a logit there, floored; `loose` (n,) where the
    choice of experts was within noise at this token or one before it, so that nothing is known.
    """

    scores: Scores
    first: int
    noise: np.ndarray
    floor: np.ndarray
    loose: np.ndarray
    has_oracle: bool

    def logprobs(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(n,), (n,): log-probabilities of the probe's next tokens, the oracle's and the twin's.

        `tokens` are those of the whole probe.
        """
        columns = np.array(self.scores.following(tokens))[self.first :]
        rows = np.arange(len(columns))
        both = (self.scores.oracle, self.scores.twin)
        expected, twin = (_log_softmax(z[self.first : -1])[rows, columns] for z in both)
        return expected, twin

    def behind(self, i: int, taken: int | None) -> float:
        """How far the logit of a token is below the best one's after i tokens; of the second best,
        where it is not known which was taken."""
        row = self.first + i
        margin = float(self.scores.margin[row])
        known = self.known(row)
        if taken is None or not known:
            return margin
        return max(known.values()) - known.get(taken, min(known.values()))

    def known(self, row: int) -> dict[int, float]:
        """Token -> logit, up to a constant, of those that there is a record of."""
        ids = self.scores.ids
        values = self.scores.oracle[row]
        if ids is None:
            return dict(enumerate(values.tolist()))
        return dict(zip(ids[row].tolist(), values[:-1].tolist(), strict=True))


_kept: WeakKeyDictionary[Comparison, Served | str] = WeakKeyDictionary()
_oracles: WeakKeyDictionary[Comparison, Oracle] = WeakKeyDictionary()


def applies(comparison: Comparison) -> bool:
    """Whether the candidate can complete a text: the checks of servers are for those alone."""
    return hasattr(comparison.candidate, "complete")


def served(comparison: Comparison) -> Served | str:
    """The server's answer to the reference's greedy probe, or why it cannot be asked."""
    if comparison not in _kept:
        _kept[comparison] = _served(comparison)
    return _kept[comparison]


def oracle(comparison: Comparison, probe: Probe) -> Oracle:
    """What the oracle says of a probe's continuation; the only use of its logits here."""
    if comparison not in _oracles:
        evidence, dtype = comparison.reference.evidence(probe), comparison.dtype
        scores, first = evidence.scores, (probe.prompt or 1) - 1
        close = Ties(evidence, PROPAGATED, dtype).close()
        rows = len(probe.tokens)
        loose = np.zeros(rows, bool) if close is None else np.logical_or.accumulate(close)
        floor = FLOOR[dtype] * scores.peak
        noise = np.maximum(scores.noise, floor)
        _oracles[comparison] = Oracle(
            scores, first, noise[first:-1], floor[first:-1], loose[first:-1], evidence.has_oracle
        )
    return _oracles[comparison]


def hint(comparison: Comparison) -> str:
    """A word on the dtype, where the model's own is not the one compared at."""
    config = comparison.files.config
    own = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    if own in FLOOR and own != comparison.dtype:
        return f"; config.json says {own}, and --dtype is to say what the server computes at"
    return ""


def _served(comparison: Comparison) -> Served | str:
    probe = next((p for p in comparison.reference.probes if p.prompt is not None), None)
    facts = comparison.reference.tokens()
    if probe is None or probe.prompt is None or facts is None:
        return "the reference has no continuation of a text on record"
    given, whole = probe.tokens[: probe.prompt], probe.tokens[probe.prompt :]
    prompt = next((text for text, ids in facts.ids.items() if ids == given), None)
    if prompt is None:
        return "the reference's continuation is of token ids, and a server takes text"
    at = next((i for i, token in enumerate(whole) if token in facts.eos_ids), None)
    expected, end = (whole, None) if at is None else (whole[:at], whole[at])
    complete = comparison.candidate.complete  # type: ignore[attr-defined]  # `applies` has looked
    told: Completion = complete(prompt, len(whole))
    spell = _speller(load_tokenizer(comparison.files), given)

    exact = is_text(told.text, spell(expected))
    if told.ids is None:
        agreed, taken = _shared_text(told.text, expected, spell), None
        aligned = _shared_pieces(told, expected, spell, exact)
    else:
        agreed = _shared(told.ids, expected)
        taken = told.ids[agreed] if agreed < len(told.ids) else None
        aligned = agreed
    if end is not None and agreed == len(expected):
        agreed += exact if told.ids is None else told.ids[agreed:] in ((), (end,))
    return Served(
        probe, prompt, len(whole), expected, end, facts.eos_ids, told, spell,
        agreed, taken, exact, aligned,
    )  # fmt: skip


def _shared(actual: Sequence[int], expected: Sequence[int]) -> int:
    """How many are equal from the first on."""
    pairs = zip(actual, expected, strict=False)
    return next((i for i, (a, e) in enumerate(pairs) if a != e), min(len(actual), len(expected)))


def _shared_text(text: str, expected: Sequence[int], spell: Spell) -> int:
    """How many tokens a text begins with."""
    for k in range(len(expected)):
        if not begins_with(text, spell(expected[: k + 1])):
            return k
    return len(expected)


def _shared_pieces(told: Completion, expected: Sequence[int], spell: Spell, exact: bool) -> int:
    """How many tokens' own texts are those of the expected ones; without any, all where as many
    log-probabilities came and the whole text is right."""
    if told.pieces is None:
        return len(expected) if exact and len(told.logprobs or ()) == len(expected) else 0
    so_far = ""
    for k, piece in enumerate(told.pieces[: len(expected)]):
        so_far += piece
        if so_far not in _loose(spell(expected[: k + 1])):
            return k
    return min(len(told.pieces), len(expected))


def _speller(tokenizer: Tokenizer, given: Sequence[int]) -> Spell:
    """What tokens are written as after those of the prompt, with special tokens and without."""
    before = [(skip, tokenizer.decode(given, skip_special=skip)) for skip in (False, True)]

    def spell(ids: Sequence[int]) -> list[str]:
        found = []
        for skip, text in before:
            whole = tokenizer.decode([*given, *ids], skip_special=skip)
            alone = tokenizer.decode(ids, skip_special=skip)
            found.append(whole[len(text) :] if whole.startswith(text) else alone)
        return found

    return spell


def is_text(text: str, spellings: Sequence[str], strictly: bool = False) -> bool:
    """Whether a text is what tokens are written as; unless `strictly`, a space lacking at its
    beginning does not matter. Nor does half a character at the end: some servers hold it back."""
    ways = spellings if strictly else _loose(spellings)
    return text.rstrip(_HALF) in [way.rstrip(_HALF) for way in ways]


def begins_with(text: str, spellings: Sequence[str], strictly: bool = False) -> bool:
    """The same of the beginning of a text."""
    ways = spellings if strictly else _loose(spellings)
    return text.rstrip(_HALF).startswith(tuple(way.rstrip(_HALF) for way in ways))


def _loose(spellings: Sequence[str]) -> list[str]:
    return [*spellings, *(text[1:] for text in spellings if text.startswith(" "))]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """(n, V) -> (n, V) in float64."""
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))
