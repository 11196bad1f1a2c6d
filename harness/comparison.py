"""One comparison at one dtype: both sides, the probes, and what was observed on each, once.

Checks read from here; whatever several of them need is computed on first use and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.files import ModelFiles

from .backends import Backend
from .limits import Limits
from .metrics import both_errors
from .policy import decide, effective_noise
from .probes import text_settings
from .reference import Reference
from .scores import Scores
from .ties import Ties
from .types import (
    FAIL,
    ISOLATED,
    JUDGED_KINDS,
    LOGITS,
    PASS,
    PROPAGATED,
    Decision,
    Evidence,
    Probe,
    Site,
    SiteDiff,
)

MODULE = "module"  # the measure of what is inside a block
MOST = 64  # prompts of one kind, however close to a limit it is


@dataclass(frozen=True)
class Measure:
    """What one site of one probe measured, not judged yet.

    `each` (T,) holds the errors of single tokens over the noise, None of those left out as ties;
    it is empty where the shape is another one.
    """

    site: Site
    mode: str
    probe: Probe
    error: float
    noise: float
    note: str | None = None
    token: int | None = None
    ties: int = 0
    each: tuple[float | None, ...] = ()

    @property
    def ratio(self) -> float:
        return self.error / self.noise


@dataclass
class Observation:
    """What both sides did on one probe: a measure per site and mode, and the logits.

    `oracle` and `twin` (T, V) may be a golden's sketch of them; `view` brings any logits (T, V)
    into their form.
    """

    probe: Probe
    measures: list[Measure]
    evidence: Evidence
    actual: np.ndarray  # (T, V), as the candidate gave them
    tied: np.ndarray | None = None  # (T,) either side sent them to other experts, within noise
    close: np.ndarray | None = None  # (T,) experts were chosen within noise of other ones

    @property
    def oracle(self) -> np.ndarray:
        return self.evidence.logits

    @property
    def twin(self) -> np.ndarray:
        return self.evidence.twin

    @property
    def has_oracle(self) -> bool:
        return self.evidence.has_oracle

    @property
    def fits(self) -> bool:
        """Whether the candidate's logits have the reference's shape."""
        return self.actual.shape == self.evidence.shape(LOGITS)

    @property
    def scores(self) -> Scores:
        return self.evidence.scores

    def view(self, logits: np.ndarray) -> np.ndarray:
        return self.evidence.view(LOGITS, logits)

    @property
    def same_experts(self) -> np.ndarray:
        """(T,) true where all logits come from the same experts."""
        return np.ones(len(self.probe.tokens), bool) if self.tied is None else ~self.tied


class Comparison:
    """`progress(done, total, what)` is told as probes are finished."""

    def __init__(
        self,
        files: ModelFiles,
        reference: Reference,
        candidate: Backend,
        probes: Sequence[Probe],
        limits: Limits,
        progress: Callable[[int, int | None, str], None] | None = None,
    ) -> None:
        self.files, self.reference, self.candidate = files, reference, candidate
        self.dtype, self.limits = candidate.dtype, limits
        self.probes = list(probes)
        self.depth = "block"
        self.original: ModelFiles | None = None  # what a quantised model was made from
        self.decisions: list[Decision] = []  # of checks that judge more than sites
        self.inner: list[SiteDiff] = []  # modules inside blocks, where they were looked at
        self.tell = progress or (lambda done, total, what: None)
        self._observed: dict[str, Observation] = {}
        self._bare: tuple[Probe, np.ndarray] | None = None
        self._judged: tuple[int, tuple[list[SiteDiff], list[Decision]]] | None = None

    @property
    def window(self) -> int | None:
        window = text_settings(self.files.config).get("sliding_window")
        return window if isinstance(window, int) and window > 0 else None

    def longest(self, *kinds: str) -> Probe | None:
        """The longest probe of the first of these kinds that has any."""
        for kind in kinds:
            found = [p for p in self.probes if p.kind == kind and len(p.tokens) > 2]
            if found:
                return max(found, key=_length)
        return max((p for p in self.probes if len(p.tokens) > 2), key=_length, default=None)

    def observation(self, probe: Probe) -> Observation:
        if probe.name not in self._observed:
            self._observe(probe)
        return self._observed[probe.name]

    @property
    def observed(self) -> list[Observation]:
        """The probes that some check has asked for, in that order."""
        return list(self._observed.values())

    def observations(self) -> list[Observation]:
        """All probes, observed."""
        for done, probe in enumerate(self.probes):
            self.tell(done, len(self.probes), f"probe {probe.name}, {self.dtype}")
            self.observation(probe)
        self.tell(len(self.probes), len(self.probes), "")
        return self.observed

    def evidence(self, probe: Probe) -> Evidence:
        """What a probe is judged against: as it was observed, where it was."""
        seen = self._observed.get(probe.name)
        if seen is not None and seen.probe == probe:
            return seen.evidence
        return self.reference.evidence(probe)

    def bare(self, probe: Probe) -> np.ndarray:
        """Logits of the pass that serves users, nobody watching; those of one probe are kept."""
        if self._bare is None or self._bare[0] != probe:
            self._bare = probe, self.candidate.forward(probe.tokens)
        return self._bare[1]

    def settle(self) -> None:
        """Add probes of every kind that is not decided yet, until it is, or MOST are reached."""
        while True:
            self.observations()
            _, decisions = self.judged_sites()
            wanted: dict[str, int] = {}
            for d in decisions:
                if d.more is not None:
                    wanted[d.kind] = max(wanted.get(d.kind, 0), d.more)
            added = [probe for kind, more in wanted.items() for probe in self._further(kind, more)]
            if not added:
                return
            self.probes += added

    def _further(self, kind: str, more: int) -> list[Probe]:
        have = sum(probe.kind == kind for probe in self.probes)
        found = (self.reference.more(kind, i) for i in range(have, min(have + more, MOST)))
        return [probe for probe in found if probe is not None]

    def decide(
        self, measure: str, kind: str, ratios: Sequence[float], tests: int, **known: Any
    ) -> Decision:
        """Judge and keep what a check measured on the prompts of one kind."""
        row = self.limits.row(measure, self.dtype, kind)
        decision = decide(ratios, row, tests, measure=measure, dtype=self.dtype, kind=kind, **known)
        self.decisions.append(decision)
        return decision

    def judged_sites(self) -> tuple[list[SiteDiff], list[Decision]]:
        """Every site of every probe observed so far, with the decision on its kind of probe."""
        if self._judged is None or self._judged[0] != len(self._observed):
            self._judged = len(self._observed), self._judge_sites()
        return self._judged[1]

    def _judge_sites(self) -> tuple[list[SiteDiff], list[Decision]]:
        groups: dict[tuple[str, Site, str], list[Measure]] = {}
        for measure in (m for o in self.observed for m in o.measures):
            key = measure.mode, measure.site, measure.probe.kind
            groups.setdefault(key, []).append(measure)
        blind = {o.probe.name for o in self.observed if not o.has_oracle}
        diffs, decisions = [], []
        for (mode, site, kind), measures in groups.items():
            row = self.limits.row(mode, self.dtype, kind)
            decision = decide(
                [m.ratio for m in measures],
                row,
                len(groups),
                measure=mode,
                dtype=self.dtype,
                kind=kind,
                site=site,
                has_oracle=not any(m.probe.name in blind for m in measures),
            )
            decisions.append(decision)
            diffs += [self._diff(m, row.limit, decision.verdict) for m in measures]
        return diffs, decisions

    def modules(self, probe: Probe, block: int) -> list[SiteDiff]:
        """Diffs of the modules inside one block, in the reference's order, each fed the oracle's
        values of the ones before it.

        Empty where the reference is a file: then the block is as near as it gets.
        """
        evidence = self.inside(probe, block)
        if evidence is None:
            return []
        measures: list[Measure] = []
        ties = Ties(evidence, ISOLATED, self.dtype)
        self._run(probe, evidence, ISOLATED, measures.append, ties, inside=block)
        order = list(evidence.expected[ISOLATED])
        inner = [m for m in measures if m.site.kind == "module" and m.note is None]
        inner.sort(key=lambda m: order.index(m.site))
        allowed = self.limits.row(MODULE, self.dtype, probe.kind).limit
        diffs = [self._diff(m, allowed, PASS if m.ratio <= allowed else FAIL) for m in inner]
        self.inner += diffs
        return diffs

    def inside(self, probe: Probe, block: int) -> Evidence | None:
        """The reference's evidence of the modules in one block, fed as far as the candidate
        shows them too; None where either side has none."""
        if {"sites", "inside"} & set(self.candidate.limits):
            return None
        shapes: dict[Site, tuple[int, ...]] = {}

        def observe(site: Site, actual: np.ndarray) -> None:
            if site.kind == "module":
                shapes[site] = actual.shape

        known = self.evidence(probe)
        self.candidate.forward(probe.tokens, observe, feed=known.feed, inside=block)
        return self.reference.inside(probe, block, shapes, known) if shapes else None

    def _observe(self, probe: Probe) -> None:
        evidence = self.reference.evidence(probe)
        measures: list[Measure] = []
        ties = {mode: Ties(evidence, mode, self.dtype) for mode in (PROPAGATED, ISOLATED)}
        logits = self._run(probe, evidence, PROPAGATED, measures.append, ties[PROPAGATED])
        if "sites" not in self.candidate.limits:
            self._run(probe, evidence, ISOLATED, measures.append, ties[ISOLATED])
        self.observed_as(probe, evidence, measures, logits, ties)

    def observed_as(
        self,
        probe: Probe,
        evidence: Evidence,
        measures: Sequence[Measure],
        logits: np.ndarray,
        ties: Mapping[str, Ties],
    ) -> None:
        """Keep what was observed on a probe."""
        judged = [m for m in measures if m.site.kind in JUDGED_KINDS]
        other = ties[PROPAGATED]
        tied = _either(evidence.tied, other.tied(LOGITS))
        self._observed[probe.name] = Observation(
            probe, judged, evidence, logits, tied, other.close()
        )

    def _run(
        self,
        probe: Probe,
        evidence: Evidence,
        mode: str,
        keep: Callable[[Measure], None],
        ties: Ties,
        inside: int | None = None,
    ) -> np.ndarray:
        observe = self.observer(probe, evidence, mode, keep, ties)
        feed = evidence.feed if mode == ISOLATED else None
        return self.candidate.forward(probe.tokens, observe, feed=feed, inside=inside)

    def observer(
        self,
        probe: Probe,
        evidence: Evidence,
        mode: str,
        keep: Callable[[Measure], None],
        ties: Ties,
    ) -> Callable[[Site, np.ndarray], None]:
        """What is to be told the candidate's arrays: it measures them against the evidence."""
        allowed = self.limits.row(mode, self.dtype, probe.kind).limit

        def observe(site: Site, actual: np.ndarray) -> None:
            ties.see(site, actual)
            noise = evidence.noise[mode]
            if site not in noise:
                return
            expected = evidence.expected[mode][site]
            path = next(known for known in noise if known == site)  # the reference's own
            least = effective_noise(noise[site], self.dtype)
            note, token, each = None, None, ()
            if actual.shape != (shape := evidence.shape(site, mode)):
                note = f"shape {actual.shape}, the reference has {shape}"
                error = float("inf")
            else:
                actual = evidence.view(site, actual)
                kept, tied = ties.kept(site), ties.tied(site)
                error, errors = both_errors(actual, expected, kept)
                ratios = errors / least
                if not error / least <= allowed and (ratios > allowed).any():
                    token = int(np.argmax(ratios > allowed))
                out = np.zeros(len(ratios), bool) if tied is None else tied
                each = tuple(
                    None if t else r for t, r in zip(out.tolist(), ratios.tolist(), strict=True)
                )
            keep(Measure(path, mode, probe, error, least, note, token, ties.count(site), each))

        return observe

    def _diff(self, measure: Measure, allowed: float, verdict: str) -> SiteDiff:
        """One probe's part in a decision: where a kind fails, the prompts that are beyond."""
        if verdict == FAIL and measure.ratio <= allowed:
            verdict = PASS
        m = measure
        return SiteDiff(
            m.site, m.mode, m.probe.name, self.dtype, m.error, m.noise, m.ratio, allowed, verdict,
            m.note, m.token if verdict == FAIL else None, m.ties,
        )  # fmt: skip


def _either(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a | b


def _length(probe: Probe) -> int:
    return len(probe.tokens)
