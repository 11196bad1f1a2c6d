"""A verdict in a few lines of plain text, for the failure of a test or the log of a job."""

from __future__ import annotations

from collections.abc import Iterator

from ..types import ERROR, FAIL, INCONCLUSIVE, ISOLATED, Verdict
from ._words import WORDS, name_of, nearness_of, number, worst_of

SHOWN = 8  # sites


def brief(verdict: Verdict) -> str:
    """The answer, the first divergence, the likely cause, and the sites nearest to their limits."""
    return "\n".join(_lines(verdict))


def _lines(verdict: Verdict) -> Iterator[str]:
    yield (
        f"{verdict.model}: {verdict.candidate} against {verdict.reference}, {verdict.dtype}: "
        f"{WORDS[verdict.verdict]}"
    )
    if verdict.error:
        yield verdict.error
    if first := verdict.first_divergence:
        yield f"first divergence: {first.check}: {first.message}"
        if first.code:
            yield f"in the code: {first.code}"
    if verdict.diagnosis:
        yield f"likely cause: {verdict.diagnosis}"
    for check in verdict.checks:
        if check.verdict in (FAIL, ERROR, INCONCLUSIVE):
            yield f"{check.verdict:12}  {check.name}, {check.dtype}: {check.reason}"
    yield from _sites(verdict)


def _sites(verdict: Verdict) -> Iterator[str]:
    """The worst mode and dtype of every site, a line each, those beyond their limit first."""
    judged = [diff for diff in verdict.sites if diff.judged]
    isolated = [diff for diff in judged if diff.mode == ISOLATED]
    worst = worst_of(isolated or judged)
    shown = sorted(worst, key=lambda diff: (diff.verdict != FAIL, -nearness_of(diff)))[:SHOWN]
    if not shown:
        return
    yield f"{'site':12}  {'error/noise':>11}  {'limit':>6}  {'error':>8}  {'dtype':8}  probe"
    for diff in sorted(shown, key=worst.index):
        mark = "x" if diff.verdict == FAIL else " "
        yield (
            f"{name_of(diff.site):12}  {number(diff.ratio):>9} {mark}  {diff.limit:6.1f}  "
            f"{diff.error:8.1e}  {diff.dtype:8}  {diff.probe}"
        )
    if len(worst) > len(shown):
        yield f"and {len(worst) - len(shown)} more sites"
