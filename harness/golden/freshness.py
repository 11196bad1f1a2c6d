"""Stale or regression? A golden is stale where a fresh run of its own reference disagrees with it.

Asked when a candidate fails against a golden: the fresh run is judged as if it were a candidate.
"""

from __future__ import annotations

from typing import Any

from engine.errors import EngineError

from .. import environment
from ..backends import Request, load_backend
from ..comparison import Comparison
from ..limits import find_limits
from ..streaming import StreamedComparison
from ..types import ERROR, FAIL, PASS, SKIP, CheckResult
from .store import GoldenReference

NAME = "golden"


def freshness(comparison: Comparison, golden: GoldenReference) -> CheckResult:
    """ERROR where the golden is stale, PASS where it is not, SKIP where that cannot be told."""
    entry = golden.entry
    there = f"it was recorded on {entry.get('date', 'an unknown day')}"
    if isinstance(comparison, StreamedComparison):
        return CheckResult(NAME, SKIP, f"not asked of a streamed model; {there}")
    try:
        fresh = load_backend(entry["reference"], Request(golden.files, golden.dtype))
    except EngineError:
        what = f"{there} with {_versions(entry)}"
        return CheckResult(
            NAME, SKIP, f"whether it is stale cannot be told without {entry['reference']}; {what}"
        )
    limits = find_limits(environment.device_class(fresh.device))
    own = Comparison(golden.files, golden, fresh, golden.probes, limits)
    own.observations()
    failed = [diff for diff in own.judged_sites()[0] if diff.verdict == FAIL]
    known = golden.tokens()
    moved = known and (found := fresh.tokens(list(known.ids))) and found.ids != known.ids
    if not failed and not moved:
        return CheckResult(NAME, PASS, f"a fresh run of {fresh.name} agrees with it; {there}")
    if failed:
        worst = max(failed, key=lambda diff: diff.ratio)
        what = f"at {worst.site.path}, probe {worst.probe!r}, {worst.ratio:.3g} times the noise"
    else:
        what = "in the tokens of the probe texts"
    reason = (
        f"STALE, no regression: a fresh run of {fresh.name} disagrees with it too, {what}; "
        f"{_moved(entry)}; record it again: harness golden record --model {golden.files.name} "
        f"--reference {entry['reference']} --dtype {golden.dtype}"
    )
    return CheckResult(NAME, ERROR, reason)


def _moved(entry: dict[str, Any]) -> str:
    """The versions that differ, on both sides."""
    here, there = environment.describe()["packages"], entry.get("packages", {})
    other = [name for name in here if here[name] != there.get(name)]
    if not other:
        return f"the versions are those of {entry.get('date')}, the machine or a file is not"
    sides = (", ".join(f"{name} {side.get(name)}" for name in other) for side in (there, here))
    return "recorded with {}, here {}".format(*sides)


def _versions(entry: dict[str, Any]) -> str:
    packages = entry.get("packages", {})
    shown = [f"{name} {packages[name]}" for name in ("torch", "transformers") if packages.get(name)]
    return ", ".join(shown) or "unknown versions"
