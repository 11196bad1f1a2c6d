"""One comparison at one dtype: both sides, the probes, and what was observed on each, once.

Checks read from here; whatever several of them need is computed on first use and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.files import ModelFiles

from .backends import Backend
from .limits import Limits
from .metrics import first_bad_token, relative_error
from .policy import decide, effective_noise
from .reference import Reference
from .ties import Ties
from .types import (
    CONTEXT,
    FAIL,
    INCONCLUSIVE,
    ISOLATED,
    JUDGED_KINDS,
    KEY,
    LOGITS,
    PASS,
    PROPAGATED,
    QUERY,
    SKIP,
    CheckResult,
    Decision,
    Divergence,
    Evidence,
    Probe,
    Site,
    SiteDiff,
)

MOST = 64  # prompts of one kind, however close to a limit it is


@dataclass(frozen=True)
class Measure:
    """What one site of one probe measured, not judged yet."""

    site: Site
    mode: str
    probe: Probe
    error: float
    noise: float
    note: str | None = None
    token: int | None = None
    ties: int = 0

    @property
    def ratio(self) -> float:
        return self.error / self.noise


@dataclass
class Observation:
    """What both sides did on one probe: a measure per site and mode, and three logits (T, V)."""

    probe: Probe
    measures: list[Measure]
    oracle: np.ndarray  # float64
    twin: np.ndarray
    actual: np.ndarray
    has_oracle: bool
    tied: np.ndarray | None = None  # (T,) either side sent them to other experts, within noise
    close: np.ndarray | None = None  # (T,) experts were chosen within noise of other ones

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
        self.decisions: list[Decision] = []  # of checks that judge more than sites
        self.inner: list[SiteDiff] = []  # modules inside blocks, where they were looked at
        self.tell = progress or (lambda done, total, what: None)
        self._observed: dict[str, Observation] = {}

    @property
    def window(self) -> int | None:
        window = self.files.config.get("sliding_window")
        return window if isinstance(window, int) else None

    def longest(self, *kinds: str) -> Probe | None:
        """The longest probe of the first of these kinds that has any."""
        for kind in kinds:
            found = [p for p in self.probes if p.kind == kind and len(p.tokens) > 2]
            if found:
                return max(found, key=_length)
        return max((p for p in self.probes if len(p.tokens) > 2), key=_length, default=None)

    def observation(self, probe: Probe) -> Observation:
        if probe.name not in self._observed:
            self._observed[probe.name] = self._observe(probe)
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
        evidence = self.reference.inside(probe, block)
        if evidence is None or "sites" in self.candidate.limits:
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

    def _observe(self, probe: Probe) -> Observation:
        evidence = self.reference.evidence(probe)
        measures: list[Measure] = []
        ties = Ties(evidence, PROPAGATED, self.dtype)
        logits = self._run(probe, evidence, PROPAGATED, measures.append, ties)
        if "sites" not in self.candidate.limits:
            isolated = Ties(evidence, ISOLATED, self.dtype)
            self._run(probe, evidence, ISOLATED, measures.append, isolated)
        judged = [m for m in measures if m.site.kind in JUDGED_KINDS]
        return Observation(
            probe, judged, evidence.logits, evidence.twin, logits, evidence.has_oracle,
            _either(evidence.tied, ties.tied(LOGITS)), ties.close(),
        )  # fmt: skip

    def _run(
        self,
        probe: Probe,
        evidence: Evidence,
        mode: str,
        keep: Callable[[Measure], None],
        ties: Ties,
        inside: int | None = None,
    ) -> np.ndarray:
        paths = {site: site for site in evidence.expected[mode]}  # the reference's own paths
        allowed = self.limits.row(mode, self.dtype, probe.kind).limit

        def observe(site: Site, actual: np.ndarray) -> None:
            if site not in paths:
                return
            ties.see(site, actual)
            expected = evidence.expected[mode][site]
            noise = effective_noise(evidence.noise[mode][site], self.dtype)
            note = token = None
            if actual.shape != expected.shape:
                note = f"shape {actual.shape}, the reference has {expected.shape}"
                error = float("inf")
            else:
                kept = ties.kept(site)
                error = relative_error(actual[kept], expected[kept])
                if not error / noise <= allowed:
                    token = first_bad_token(actual, expected, noise, allowed)
            left = ties.count(site)
            keep(Measure(paths[site], mode, probe, error, noise, note, token, left))

        feed = evidence.feed if mode == ISOLATED else None
        return self.candidate.forward(probe.tokens, observe, feed=feed, inside=inside)

    def _diff(self, measure: Measure, allowed: float, verdict: str) -> SiteDiff:
        """One probe's part in a decision: where a kind fails, the prompts that are beyond."""
        if verdict == FAIL and measure.ratio <= allowed:
            verdict = PASS
        m = measure
        return SiteDiff(
            m.site, m.mode, m.probe.name, self.dtype, m.error, m.noise, m.ratio, allowed, verdict,
            m.note, m.token if verdict == FAIL else None, m.ties,
        )  # fmt: skip


MODULE = "module"  # the measure of what is inside a block


def site_result(comparison: Comparison, name: str, kinds: Sequence[str]) -> CheckResult:
    """The answer of a check that asks about sites of some kinds."""
    comparison.observations()
    all_diffs, all_decisions = comparison.judged_sites()
    diffs = [d for d in all_diffs if d.site.kind in kinds]
    decisions = [d for d in all_decisions if d.site and d.site.kind in kinds]
    if not diffs:
        reason = comparison.candidate.limits.get("sites", "the candidate shows no such site")
        return CheckResult(name, SKIP, reason)
    worst = {m: max((d.ratio for d in diffs if d.mode == m), default=None) for m in MODES}
    measures = {
        "sites": len({d.site for d in diffs}),
        "probes": len({d.probe for d in diffs}),
        "ties": sum(d.ties for d in diffs),
        **{f"worst_{mode}_ratio": ratio for mode, ratio in worst.items()},
    }
    failed = [d for d in diffs if d.verdict == FAIL]
    if failed:
        divergence = describe(comparison, name, first(failed))
        measures["failed_blocks"] = sorted(
            {d.site.block for d in failed if d.site.block is not None and d.mode == ISOLATED}
        )
        return CheckResult(name, FAIL, divergence.message, measures, divergence=divergence)
    parts = [f"{ratio:.1f} {mode}" for mode, ratio in worst.items() if ratio is not None]
    reason = f"{measures['sites']} sites x {measures['probes']} probes; at most "
    reason += f"{', '.join(parts)} x noise"
    open_ones = [d for d in decisions if d.verdict == INCONCLUSIVE]
    if open_ones:
        return CheckResult(name, INCONCLUSIVE, undecided(open_ones), measures)
    return CheckResult(name, PASS, reason, measures)


def undecided(decisions: Sequence[Decision]) -> str:
    """Say what is open, and how many more prompts would close it."""
    wanted = [d for d in decisions if d.more is not None]
    if not wanted:
        return "no oracle (PyTorch or a golden): only the distance to the reference is known"
    worst = max(wanted, key=lambda d: d.more or 0)
    where = f" at {worst.site.path}" if worst.site else ""
    return (
        f"{worst.measure}{where}, {worst.kind!r} probes: between {worst.low:.3g} and "
        f"{worst.high:.3g} times the noise, limit {worst.limit:g}; about {worst.more} more "
        f"prompt{'s' if worst.more != 1 else ''} would decide (--until-decided runs them)"
    )


MODES = (ISOLATED, PROPAGATED)
_ORDER = {"embedding": 0, "block": 1, "norm": 2, "logits": 3}


def first(failed: Sequence[SiteDiff]) -> SiteDiff:
    """The first failing site in execution order, on the probe that shows it best.

    Isolated failures come first: there an error is the site's own.
    """

    def place(diff: SiteDiff) -> tuple[bool, int, int]:
        return diff.mode != ISOLATED, _ORDER[diff.site.kind], diff.site.block or 0

    where = min(map(place, failed))
    return max((d for d in failed if place(d) == where), key=lambda d: d.ratio)


def describe(comparison: Comparison, check: str, diff: SiteDiff) -> Divergence:
    """Say where a failing site stands, and which module inside its block is off first."""
    site = diff.site
    named = {"block": f"block {site.block}", "norm": "the last norm"}.get(
        site.kind, f"the {site.kind}"
    )
    size = f"{diff.ratio:.3g} times the noise" if np.isfinite(diff.ratio) else "not finite"
    message = f"{named} ({site.path}) is {size} on probe {diff.probe!r}, {diff.mode}"
    message += f" (limit {diff.limit:g})"
    if diff.note:
        message = f"{named} ({site.path}) has {diff.note}"
    if diff.token:
        message += f", from token {diff.token} on"
    at = site
    if site.block is not None and diff.mode == ISOLATED and not diff.note:
        probe = next(p for p in comparison.probes if p.name == diff.probe)
        inner = comparison.modules(probe, site.block)
        culprit = next((d for d in inner if d.verdict == FAIL), None)
        if culprit is not None:
            at = culprit.site
            message += f"; the first module off is {_named(at)}"
    code = comparison.candidate.locate(at)
    return Divergence(
        check=check,
        probe=diff.probe,
        message=message,
        site=at.path,
        block=site.block,
        error=diff.error,
        noise=diff.noise,
        ratio=diff.ratio,
        limit=diff.limit,
        token=diff.token,
        code=code,
    )


_INNER = {
    QUERY: "the queries, norm and rotary done",
    KEY: "the keys, norm and rotary done",
    CONTEXT: "attention itself, before its output projection",
}


def _named(site: Site) -> str:
    explained = _INNER.get(site.part.rpartition(".")[2])
    return f"{site.part} ({explained})" if explained else site.part


def with_dtype(result: CheckResult, dtype: str) -> CheckResult:
    """The same answer, marked with the rung it was given on."""
    return replace(result, dtype=dtype)


def _either(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a | b


def _length(probe: Probe) -> int:
    return len(probe.tokens)
