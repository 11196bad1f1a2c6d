"""One comparison at one dtype: both sides, the probes, and what was observed on each, once.

Checks read from here; whatever several of them need is computed on first use and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.files import ModelFiles

from .backends import Backend
from .metrics import FLOOR, first_bad_token, relative_error
from .policy import effective_noise, judge, limit
from .reference import Reference
from .types import (
    FAIL,
    INCONCLUSIVE,
    ISOLATED,
    PASS,
    PROPAGATED,
    SKIP,
    CheckResult,
    Divergence,
    Evidence,
    Probe,
    Site,
    SiteDiff,
)


@dataclass
class Observation:
    """What the candidate did on one probe. `best` (T,) is its most likely token per position."""

    probe: Probe
    diffs: list[SiteDiff]
    best: np.ndarray


class Comparison:
    """`progress(done, total, what)` is told as probes are finished."""

    def __init__(
        self,
        files: ModelFiles,
        reference: Reference,
        candidate: Backend,
        probes: Sequence[Probe],
        progress: Callable[[int, int | None, str], None] | None = None,
    ) -> None:
        self.files, self.reference, self.candidate = files, reference, candidate
        self.dtype = candidate.dtype
        self.probes = list(probes)
        self._progress = progress or (lambda done, total, what: None)
        self._evidence: dict[str, Evidence] = {}
        self._observed: dict[str, Observation] = {}

    @property
    def floor(self) -> float:
        """Half a unit of roundoff of the dtype: no noise counts as less."""
        return FLOOR[self.dtype]

    @property
    def window(self) -> int | None:
        window = self.files.config.get("sliding_window")
        return window if isinstance(window, int) else None

    def longest(self, *kinds: str) -> Probe | None:
        """The longest probe of the first of these kinds that has any."""
        for kind in kinds:
            found = [p for p in self.probes if p.kind == kind and len(p.tokens) > 2]
            if found:
                return max(found, key=lambda p: len(p.tokens))
        return max((p for p in self.probes if len(p.tokens) > 2), key=_length, default=None)

    def evidence(self, probe: Probe) -> Evidence:
        if probe.name not in self._evidence:
            self._evidence[probe.name] = self.reference.evidence(probe)
        return self._evidence[probe.name]

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
            self._progress(done, len(self.probes), f"probe {probe.name}, {self.dtype}")
            self.observation(probe)
        self._progress(len(self.probes), len(self.probes), "")
        return self.observed

    def modules(self, probe: Probe, block: int) -> list[SiteDiff]:
        """Diffs of the modules inside one block, isolated, in the reference's order.

        Empty where the reference is a file: then the block is as near as it gets.
        """
        evidence = self.reference.inside(probe, block)
        if evidence is None or "sites" in self.candidate.limits:
            return []
        diffs: list[SiteDiff] = []
        self._run(probe, evidence, ISOLATED, diffs.append, inside=block)
        order = list(evidence.expected[ISOLATED])
        inner = [diff for diff in diffs if diff.site.kind == "module"]
        return sorted(inner, key=lambda diff: order.index(diff.site))

    def _observe(self, probe: Probe) -> Observation:
        evidence = self.evidence(probe)
        diffs: list[SiteDiff] = []
        logits = self._run(probe, evidence, PROPAGATED, diffs.append)
        if "sites" not in self.candidate.limits:
            self._run(probe, evidence, ISOLATED, diffs.append)
        return Observation(probe, diffs, logits.argmax(axis=1))

    def _run(
        self,
        probe: Probe,
        evidence: Evidence,
        mode: str,
        keep: Callable[[SiteDiff], None],
        inside: int | None = None,
    ) -> np.ndarray:
        paths = {site: site for site in evidence.expected[mode]}  # the reference's own paths

        def observe(site: Site, actual: np.ndarray) -> None:
            if site in paths:
                keep(self._diff(paths[site], mode, probe, actual, evidence))

        feed = evidence.inputs if mode == ISOLATED else None
        return self.candidate.forward(probe.tokens, observe, feed=feed, inside=inside)

    def _diff(
        self, site: Site, mode: str, probe: Probe, actual: np.ndarray, evidence: Evidence
    ) -> SiteDiff:
        expected = evidence.expected[mode][site]
        noise = effective_noise(evidence.noise[mode][site], self.dtype)
        allowed = limit(mode, self.dtype)
        error = relative_error(actual, expected)
        ratio, verdict = judge(error, noise, allowed, evidence.has_oracle)
        note = token = None
        if actual.shape != expected.shape:
            note = f"shape {actual.shape}, the reference has {expected.shape}"
        elif verdict == FAIL:
            token = first_bad_token(actual, expected, noise, allowed)
        return SiteDiff(
            site, mode, probe.name, self.dtype, error, noise, ratio, allowed, verdict, note, token
        )


def site_result(comparison: Comparison, name: str, kinds: Sequence[str]) -> CheckResult:
    """The answer of a check that asks about sites of some kinds."""
    observations = comparison.observations()
    diffs = [d for o in observations for d in o.diffs if d.judged and d.site.kind in kinds]
    if not diffs:
        reason = comparison.candidate.limits.get("sites", "the candidate shows no such site")
        return CheckResult(name, SKIP, reason)
    worst = {m: max((d.ratio for d in diffs if d.mode == m), default=None) for m in MODES}
    measures = {
        "sites": len({d.site for d in diffs}),
        "probes": len({d.probe for d in diffs}),
        **{f"worst_{mode}_ratio": ratio for mode, ratio in worst.items()},
    }
    failed = [d for d in diffs if d.verdict == FAIL]
    if failed:
        divergence = describe(comparison, name, first(failed))
        mode = first(failed).mode
        blocks = {d.site.block for d in failed if d.mode == mode and d.site.block is not None}
        measures["failed_blocks"] = sorted(blocks)
        return CheckResult(name, FAIL, divergence.message, measures, divergence=divergence)
    parts = [f"{ratio:.1f} {mode}" for mode, ratio in worst.items() if ratio is not None]
    reason = f"{measures['sites']} sites x {measures['probes']} probes; at most "
    if not all(comparison.evidence(o.probe).has_oracle for o in observations):
        why = "no oracle (PyTorch or a golden): only the distance to the reference is known"
        return CheckResult(name, INCONCLUSIVE, why, measures)
    return CheckResult(name, PASS, f"{reason}{', '.join(parts)} x noise", measures)


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
    if site.block is not None and diff.mode == ISOLATED:
        probe = next(p for p in comparison.probes if p.name == diff.probe)
        inner = comparison.modules(probe, site.block)
        culprit = next((d for d in inner if d.verdict == FAIL), None)
        if culprit is not None:
            at = culprit.site
            message += f"; the first module off is {at.part}"
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


def with_dtype(result: CheckResult, dtype: str) -> CheckResult:
    """The same answer, marked with the rung it was given on."""
    return replace(result, dtype=dtype)


def _length(probe: Probe) -> int:
    return len(probe.tokens)
