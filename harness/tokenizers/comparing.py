"""Ask two tokenizers the same, count where they differ, and make the first difference small.

Comparison yields data; nothing here prints. How rarely can they differ and still show
nothing in n random inputs? With 95 % confidence in fewer than 3 of n (the rule of three).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import one_line

from ..errors import BadOption, ServerStopped
from ..probes import TEXTS
from ..types import FAIL, PASS, SEVERITY, SKIP
from .corpus import CONVERSATIONS, WRITTEN, Conversation, fuzz, walks
from .questions import CHAT, PROMPT, QUESTIONS, SPELT, TEXT, WALK, Question
from .shrink import shrink
from .sides import REFUSED, Side, remembering

SHOWN = 200  # characters of what a side said
REMEMBERED = 1024  # texts: all of a check's, which asks of 100 random ones
PIECES = 3000  # tokens whose texts random texts are made of
_SIMPLE: dict[str, Any] = {TEXT: "a", PROMPT: "a", SPELT: (0,), WALK: (0,)}


@dataclass(frozen=True)
class Difference:
    """One input, escaped, and what both sides make of it."""

    input: str
    reason: str
    expected: str
    actual: str


@dataclass(frozen=True)
class Raised:
    """What a side raised; equal to whatever else one raises: that both refuse is no difference."""

    error: str = field(compare=False)

    def __repr__(self) -> str:
        return f"(raised: {self.error})"


@dataclass(frozen=True)
class Answer:
    """Of one question: how often it was asked, how often the answers differed."""

    question: str
    what: str
    verdict: str
    asked: int = 0
    differences: int = 0
    rate: float | None = None  # of differing inputs: at 95 % confidence it is lower
    reason: str | None = None
    smallest: Difference | None = None


@dataclass(frozen=True)
class State:
    """What begins and ends an input: one row of the table of special tokens, template, prompt."""

    special: bool
    source: str  # "raw" or "template"
    generation: bool | None
    bos: int | None  # how many ids at the beginning are BOS
    eos: tuple[int, ...]  # ids in it that end a text
    equal: bool


@dataclass
class Findings:
    """Everything that was asked of two tokenizers."""

    reference: str
    candidate: str
    random: int
    seed: int
    answers: list[Answer] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """Fail if any answer is, pass if one holds; skip where nothing could be asked."""
        given = {answer.verdict for answer in self.answers}
        return next(verdict for verdict in SEVERITY if verdict in given)

    @property
    def first(self) -> Answer | None:
        """The first question whose answers differ."""
        return next((answer for answer in self.answers if answer.verdict == FAIL), None)


def compare(
    reference: Side,
    candidate: Side,
    count: int,
    seed: int = 0,
    *,
    questions: Sequence[Question] = QUESTIONS,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> Findings:
    """Ask what both sides can show, of the written corpus and `count` random inputs.

    Of random sequences of ids there are half as many. Raises BadOption for a negative count, and
    ServerStopped for a side that ends on the way.
    """
    if count < 0:
        raise BadOption(f"--fuzz {count}: give a number of random texts, 0 for none")
    begin = time.perf_counter()
    tell = progress or (lambda done, total, what: None)
    reference, candidate = (remembering(side, REMEMBERED) for side in (reference, candidate))
    findings = Findings(reference.name, candidate.name, count, seed)
    findings.answers.append(_facts(reference, candidate))
    findings.answers.append(_vocabulary(reference, candidate))
    kinds = {question.kind for question in questions}
    inputs = _inputs(reference, count, seed, kinds)
    for n, question in enumerate(questions):
        tell(n, len(questions), question.name)
        findings.answers.append(_answer(question, reference, candidate, inputs[question.kind]))
    findings.states = list(_states(reference, candidate))
    findings.answers.append(_state_answer(findings.states))
    findings.seconds = time.perf_counter() - begin
    return findings


def upper_bound(differences: int, asked: int) -> float | None:
    """The rate of differing inputs that is exceeded by no more than 1 in 20 such samples."""
    if not asked:
        return None
    return (
        3 / asked if not differences else min(1.0, (differences + 2 * differences**0.5 + 3) / asked)
    )


@dataclass(frozen=True)
class _Input:
    value: Any
    reason: str
    random: bool


_COUNT = next(question for question in QUESTIONS if question.kind == PROMPT)
_IDS = next(question for question in QUESTIONS if question.name == "ids")


def _inputs(side: Side, count: int, seed: int, kinds: Collection[str]) -> dict[str, list[_Input]]:
    """Of some kinds: what is written, then what is random."""
    assert side.encode and side.decode and side.facts is not None and side.added is not None
    last = side.facts["max_id"]
    step = max(1, (last + 1) // PIECES)
    ids = range(0, last + 1, step)
    pieces = [text for i in ids if i not in side.special and (text := side.decode((i,), False))]
    texts = [_Input(t.text, f"{t.name}: {t.reason}", False) for t in WRITTEN]
    drawn: Any = list(fuzz(count, seed, pieces, sorted(side.added.values())))
    texts += [_Input(text, f"random text {i} of seed {seed}", True) for i, text in enumerate(drawn)]

    def walked() -> Iterator[_Input]:
        yield from _spelt(side, texts[::2])
        drawn = walks(count // 2, seed, range(last + 1), sorted(side.special))
        yield from (_Input(w, f"random ids {i} of seed {seed}", True) for i, w in enumerate(drawn))

    def prompts() -> Iterator[_Input]:
        return (text for text in texts if side.count is None or _is_prompt(side, text.value))

    probes = [_Input(text, name, False) for name, text in TEXTS.items()]
    made: dict[str, Callable[[], Iterable[_Input]]] = {
        TEXT: lambda: texts,
        PROMPT: prompts,
        SPELT: lambda: _spelt(side, probes),
        WALK: walked,
        CHAT: lambda: (_Input(c, f"{c.name}: {c.reason}", False) for c in CONVERSATIONS),
    }
    return {kind: list(made[kind]()) for kind in kinds}


def _is_prompt(side: Side, text: str) -> bool:
    """Whether servers have to agree how many ids a text comes to. Of no ids it is none:
    mlx_lm.server ends at one, and answers nothing more. That a text which begins with BOS gets
    another is right for one server and a defect for the next."""
    assert side.facts is not None
    ids = _ask(_IDS, side, text)
    begun = isinstance(ids, tuple) and ids[1][:1] == (side.facts["bos_id"],)
    return bool(_ask(_COUNT, side, text)) and not begun


def _spelt(side: Side, texts: Sequence[_Input]) -> Iterator[_Input]:
    """The ids of texts; one that the side refuses, or that has none, is left out."""
    assert side.encode is not None
    for each in texts:
        with contextlib.suppress(Exception):
            if ids := side.encode(each.value, True).ids:
                yield replace(each, value=ids)


def _answer(question: Question, e: Side, a: Side, inputs: Sequence[_Input]) -> Answer:
    name, what = question.name, question.what
    for side in (e, a):
        missing = [part for part in question.needs if getattr(side, part) is None]
        if missing:
            return Answer(name, what, SKIP, reason=f"{side.name} shows no {missing[0]}")
    if question.kind in (TEXT, PROMPT) and question.of(a, "a") is None:
        return Answer(name, what, SKIP, reason=f"{a.name} does not tell")

    def differs(value: Any) -> bool:
        return _ask(question, e, value) != _ask(question, a, value)

    found = [each for each in inputs if differs(each.value)]
    drawn, bad = sum(i.random for i in inputs), sum(i.random for i in found)
    rate = upper_bound(bad, drawn)
    if not found:
        return Answer(name, what, PASS, len(inputs), 0, rate)
    smallest = min(found, key=lambda each: _size(each.value))
    value = smallest.value
    if question.kind in _SIMPLE:
        value = shrink(value, differs, _SIMPLE[question.kind])
    shown = Difference(
        _escaped(value),
        smallest.reason,
        *_around(_ask(question, e, value), _ask(question, a, value)),
    )
    return Answer(name, what, FAIL, len(inputs), len(found), rate, smallest=shown)


def _ask(question: Question, side: Side, value: Any) -> Any:
    try:
        return question.of(side, value)
    except ServerStopped:
        raise
    except Exception as error:  # of as many kinds as there are libraries
        return Raised(f"{type(error).__name__}: {one_line(error)}")


def _facts(e: Side, a: Side) -> Answer:
    name, what = "special ids", "BOS, EOS, how many tokens, the highest id"
    if e.facts is None or a.facts is None:
        return Answer(
            name, what, SKIP, reason=f"{(e if e.facts is None else a).name} does not tell"
        )
    for key, expected in e.facts.items():
        if a.facts[key] != expected:
            shown = Difference(key, what, repr(expected), repr(a.facts[key]))
            return Answer(name, what, FAIL, len(e.facts), 1, smallest=shown)
    return Answer(name, what, PASS, len(e.facts))


def _vocabulary(e: Side, a: Side) -> Answer:
    name, what = "vocabulary", "every token's name, and which are added and special"
    if e.facts is None or e.token is None or a.token is None:
        return Answer(name, what, SKIP, reason=f"{a.name} does not show it")
    ids = range(e.facts["max_id"] + 1)
    wrong = [id for id in ids if e.token(id) != a.token(id)]
    wrong += [id for id in ids if (id in e.special) != (id in a.special)]
    if not wrong:
        return Answer(name, what, PASS, len(ids))
    id = wrong[0]
    told = (f"{side.token(id)!r}, special {id in side.special}" for side in (e, a) if side.token)
    return Answer(
        name, what, FAIL, len(ids), len(wrong), smallest=Difference(f"id {id}", what, *told)
    )


def _states(e: Side, a: Side) -> Iterator[State]:
    """{special tokens on, off} x {raw, template with a generation prompt, without}."""
    if e.facts is None or e.encode is None:
        return
    for special in (True, False):
        for generation in (None, False, True):
            source = "raw" if generation is None else "template"
            known = (e,) if generation is not None and a.render is None else (e, a)
            if a.encode is None or (generation is not None and e.render is None):
                continue
            seen = [_state_ids(side, special, generation) for side in known]
            bos, eos = e.facts["bos_id"], e.facts["eos_ids"]
            ids = seen[-1]
            leading = next((i for i, id in enumerate(ids) if id != bos), len(ids))
            ends = tuple(sorted(set(ids) & set(eos)))
            equal = len(known) == 2 and seen[0] == seen[1]
            yield State(special, source, generation, None if bos is None else leading, ends, equal)


def _state_ids(side: Side, special: bool, generation: bool | None) -> tuple[int, ...]:
    assert side.encode is not None
    text = WRITTEN[0].text
    if generation is not None:
        assert side.render is not None
        text = side.render(_PLAIN, generation)
        if text == REFUSED:
            return ()
    return side.encode(text, special).ids


_PLAIN: Conversation = CONVERSATIONS[2]


def _state_answer(states: Sequence[State]) -> Answer:
    name, what = "states", "BOS and EOS: special tokens or not, raw or template, prompt or not"
    if not states:
        return Answer(name, what, SKIP, reason="no ids are shown")
    wrong = [state for state in states if not state.equal]
    if not wrong:
        return Answer(name, what, PASS, len(states))
    shown = Difference(f"{wrong[0]}", what, "equal", "different")
    return Answer(name, what, FAIL, len(states), len(wrong), smallest=shown)


def _size(value: Any) -> int:
    return len(value.messages) if isinstance(value, Conversation) else len(value)


def _escaped(value: Any) -> str:
    """As it can be typed: ASCII alone."""
    return value.name if isinstance(value, Conversation) else ascii(value)


def _around(expected: Any, actual: Any) -> tuple[str, str]:
    """What both sides said, from shortly before they part."""
    if (
        isinstance(expected, tuple)
        and isinstance(actual, tuple)
        and len(expected) == len(actual) == 2
    ):
        pairs = [(e, a) for e, a in zip(expected, actual, strict=True) if e != a]
        expected, actual = pairs[0] if pairs else (expected, actual)
    start = 0
    if isinstance(expected, str) and isinstance(actual, str):
        both = zip(expected, actual, strict=False)
        at = next((i for i, (e, a) in enumerate(both) if e != a), min(len(expected), len(actual)))
        start = max(0, at - 20)
    told = [ascii(v[start:] if isinstance(v, str) else v) for v in (expected, actual)]
    return tuple(t if len(t) <= SHOWN else f"{t[: SHOWN - 3]}..." for t in told)  # type: ignore[return-value]
