"""What a check answers about sites: the sentence, the first divergence, and what is open."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .comparison import Comparison
from .types import (
    CONTEXT,
    FAIL,
    INCONCLUSIVE,
    ISOLATED,
    KEY,
    PASS,
    PROPAGATED,
    QUERY,
    SKIP,
    CheckResult,
    Decision,
    Divergence,
    Site,
    SiteDiff,
)

MODES = (ISOLATED, PROPAGATED)
MARGINAL = 0.1
_ORDER = {"embedding": 0, "block": 1, "norm": 2, "logits": 3}


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


def first(failed: Sequence[SiteDiff]) -> SiteDiff:
    """The first failing site in execution order, on the probe that shows it best.

    Isolated failures come first: there an error is the site's own.
    """

    def place(diff: SiteDiff) -> tuple[bool, int, int]:
        return diff.mode != ISOLATED, _ORDER[diff.site.kind], diff.site.block or 0

    where = min(map(place, failed))
    return max((d for d in failed if place(d) == where), key=lambda d: d.ratio)


def culprit(modules: Sequence[SiteDiff]) -> SiteDiff | None:
    """The first module of a block that is off, given all of them in the order they run.

    Each was fed what is right, so that one that is off is wrong by itself. Those less than
    MARGINAL of the worst one beyond their limit are passed over: other rounding than calibration
    has seen.
    """
    off = [(d, d.ratio / d.limit) for d in modules if d.verdict == FAIL]
    worst = max((by for _, by in off), default=0.0)
    return next((d for d, by in off if not by < MARGINAL * worst), None)


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
        module = culprit(comparison.modules(probe, site.block))
        if module is not None:
            at = module.site
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
