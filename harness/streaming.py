"""A comparison whose sides advance part by part, so that no model has to fit into memory.

Embedding, blocks, last norm and head: of each part the oracle is run on all probes, then the
reference, then the candidate, with that part's weights in memory only; what was judged is dropped.
Between parts the whole state is small, and can be kept in a file to go on from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .backends import Observe
from .backends._streamed import Streamed, before, parts
from .comparison import Comparison, Measure
from .memory import give_back_freed
from .reference import Errors, exponent_for, rounded
from .seeded import block_input
from .ties import Ties
from .types import ISOLATED, LOGITS, PROPAGATED, Evidence, Probe, Site

MODES = (PROPAGATED, ISOLATED)
KEPT = ("logits", "router", "groups", "experts")  # needed to the end
Keep = Callable[[Site, np.ndarray], np.ndarray]


class State(Protocol):
    """Where a stream goes on from."""

    def load(self, stream: Stream) -> int: ...

    def save(self, stream: Stream, done: int) -> None: ...


@dataclass
class Course:
    """How far one probe is.

    `values` are what the sides gave in the last part, propagated: what enters the next one. With
    `seeded` the isolated inputs are, and `scales` grow as their sizes become known.
    """

    probe: Probe
    evidence: Evidence
    seeded: bool = False
    scales: list[int] = field(default_factory=list)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seeded = self.seeded or self.probe.scales is not None

    def fed(self, side: str, mode: str, entering: Site | None) -> np.ndarray | None:
        """What enters a part on one side."""
        if entering is None:
            return None
        return self.evidence.feed[entering] if mode == ISOLATED else self.values.get(side)

    def feed_next(self, part: Site, dtype: str) -> None:
        """Decide what enters the part after this one in isolated mode."""
        value = rounded(self.values["oracle"], dtype)
        if self.seeded:
            known, place = self.probe.scales, len(self.scales)
            self.scales.append(exponent_for(value) if known is None else known[place])
            length, width = value.shape
            value = block_input(place, length, width, self.scales[place])
        self.evidence.feed[part] = value


def new_evidence() -> Evidence:
    """Evidence that is yet to be gathered."""
    return Evidence({m: {} for m in MODES}, {}, {m: {} for m in MODES}, np.zeros((0, 0)))


class Stream:
    """Advances all probes through all parts.

    Either `oracle` and `twin` make the evidence, or it is a recording's, complete. `keep` gives
    what is to be kept of the oracle's arrays once a part is done; None keeps nothing.
    """

    def __init__(
        self,
        courses: Sequence[Course],
        dtype: str,
        *,
        oracle: Streamed | None = None,
        twin: Streamed | None = None,
        candidate: Streamed | None = None,
        comparison: Comparison | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.courses, self._dtype, self._keep = list(courses), dtype, keep
        self._oracle, self._twin, self._candidate = oracle, twin, candidate
        self._comparison = comparison
        sides = [side for side in (oracle, twin, candidate) if side is not None]
        self._blocks = sides[0].blocks
        self.parts = parts(self._blocks)
        self.errors = [
            {mode: Errors(c.evidence, mode, dtype) for mode in MODES} for c in self.courses
        ]
        self.ties = [{mode: Ties(c.evidence, mode, dtype) for mode in MODES} for c in self.courses]

    @property
    def live(self) -> bool:
        """Whether the evidence is made here."""
        return self._oracle is not None

    def all_ties(self, index: int) -> dict[str, dict[str, Ties]]:
        """Whose tokens are left out of a probe so far: side -> mode -> Ties."""
        errors = {mode: each.ties for mode, each in self.errors[index].items()}
        return {"twin": errors, "candidate": self.ties[index]}

    def run(
        self,
        begin: int = 0,
        after: Callable[[int], None] = lambda done: None,
        progress: Callable[[int, int | None, str], None] | None = None,
    ) -> None:
        """All parts from the given one; `after(done)` is told when so many are done."""
        for index, part in enumerate(self.parts[begin:], begin):
            name = part.kind if part.block is None else f"block {part.block}"
            if progress:
                progress(index, len(self.parts), f"{name}, {self._dtype}")
            self._advance(part)
            if part != LOGITS:
                after(index + 1)
        for course, errors in zip(self.courses, self.errors, strict=True):
            if self._twin is not None:
                course.evidence.tied = errors[PROPAGATED].ties.tied(LOGITS)

    def _advance(self, part: Site) -> None:
        entering = None if part == self.parts[0] else before(part, self._blocks)
        if self._oracle is not None:
            self._run_side(self._oracle, "oracle", part, entering, self._true)
            for course in self.courses:
                if part != LOGITS:
                    course.feed_next(part, self._dtype)
        if self._twin is not None:
            self._run_side(self._twin, "twin", part, entering, self._noise)
        if self._candidate is not None:
            self._run_side(self._candidate, "candidate", part, entering, self._measure)
        for course in self.courses:
            if self._oracle is not None:
                self._prune(course, part)
            if entering is not None:
                course.evidence.feed.pop(entering)

    def _run_side(
        self,
        side: Streamed,
        name: str,
        part: Site,
        entering: Site | None,
        observer: Callable[[int, str], Observe],
    ) -> None:
        with side.resident(part):
            for index, course in enumerate(self.courses):
                given: dict[Site, np.ndarray] = {}
                for mode in MODES:
                    fed, tell = course.fed(name, mode, entering), observer(index, mode)
                    watch = _both(given.__setitem__, tell) if mode == PROPAGATED else tell
                    side.run(course.probe.tokens, part, mode, fed, watch)
                if part in given:
                    course.values[name] = given[part]
        give_back_freed()

    def _true(self, index: int, mode: str) -> Observe:
        return self.courses[index].evidence.expected[mode].__setitem__

    def _noise(self, index: int, mode: str) -> Observe:
        errors, evidence = self.errors[index][mode], self.courses[index].evidence

        def observe(site: Site, array: np.ndarray) -> None:
            if site == LOGITS and mode == PROPAGATED:
                evidence.twin = array
            errors(site, array)

        return observe

    def _measure(self, index: int, mode: str) -> Observe:
        assert self._comparison is not None
        course = self.courses[index]
        return self._comparison.observer(
            course.probe, course.evidence, mode, course.measures.append, self.ties[index][mode]
        )

    def _prune(self, course: Course, part: Site) -> None:
        """Drop the oracle's arrays of a part, or what `keep` leaves of them."""
        for arrays in course.evidence.expected.values():
            for site in list(arrays):
                done = site == part or site.kind == "norm"
                if not done or site.kind in KEPT:
                    continue
                if self._keep is None:
                    del arrays[site]
                else:
                    course.evidence.widths = {
                        **course.evidence.widths, site: arrays[site].shape[1]
                    }  # fmt: skip
                    arrays[site] = self._keep(site, arrays[site])


def _both(one: Observe, other: Observe) -> Observe:
    def observe(site: Site, array: np.ndarray) -> None:
        one(site, array)
        other(site, array)

    return observe


class StreamedComparison(Comparison):
    """A comparison whose candidate, and reference where that is live, are Streamed.

    `oracle` and `twin` are None where the reference is a recording.
    """

    def __init__(self, *known: Any) -> None:
        *shared, self._oracle, self._twin = known
        super().__init__(*shared)

    def observe_all(self, state: State | None = None) -> None:
        """Observe all probes together; the state of an earlier run is gone on from."""
        live = self._oracle is not None
        courses = [
            Course(probe, new_evidence() if live else self.reference.evidence(probe))
            for probe in self.probes
        ]
        side: Any = self.candidate
        stream = Stream(
            courses, self.dtype,
            oracle=self._oracle, twin=self._twin, candidate=side, comparison=self,
        )  # fmt: skip
        begin = state.load(stream) if state else 0
        save = state.save if state else lambda stream, done: None
        stream.run(begin, lambda done: save(stream, done), self.tell)
        for course, ties in zip(courses, stream.ties, strict=True):
            logits = course.values["candidate"]
            self.observed_as(course.probe, course.evidence, course.measures, logits, ties)
