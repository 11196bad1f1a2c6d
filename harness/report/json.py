"""The verdict as JSON, schema `harness.verdict/1`. Numbers are finite or null."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.whole import write_whole

from ..types import Decision, SiteDiff, Verdict

SCHEMA = "harness.verdict/1"


def write(verdict: Verdict, path: Path) -> None:
    """Write the document whole or not at all. Raises OSError."""
    text = json.dumps(document(verdict), indent=1, allow_nan=False) + "\n"
    write_whole(path, text.encode())


def document(verdict: Verdict) -> dict[str, Any]:
    """The JSON-able document of a verdict; keys may be added to it, never change meaning."""
    first = verdict.first_divergence
    return finite(
        {
            "schema": SCHEMA,
            "verdict": verdict.verdict,
            "model": verdict.model,
            "candidate": verdict.candidate,
            "reference": verdict.reference,
            "dtype": verdict.dtype,
            "device": verdict.device,
            "ranks": verdict.ranks,
            "first_divergence": None if first is None else asdict(first),
            "diagnosis": verdict.diagnosis,
            "error": verdict.error,
            "checks": [
                {
                    "name": check.name,
                    "verdict": check.verdict,
                    "reason": check.reason,
                    "measures": check.measures,
                    "dtype": check.dtype,
                    "reported": check.reported,
                }
                for check in verdict.checks
            ],
            "sites": [_site(diff) for diff in verdict.sites],
            "decisions": [_decision(decision) for decision in verdict.decisions],
            "prompts_needed": verdict.prompts_needed,
            "calibration": verdict.calibration,
            "environment": verdict.environment,
            "seconds": verdict.seconds,
            "peak_memory_bytes": verdict.peak_memory_bytes,
        }
    )


def finite(value: Any) -> Any:
    """The same structure with plain numbers, and null for what is not finite."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _site(diff: SiteDiff) -> dict[str, Any]:
    return {
        "site": diff.site.path,
        "block": diff.site.block,
        "kind": diff.site.kind,
        "mode": diff.mode,
        "probe": diff.probe,
        "error": diff.error,
        "noise": diff.noise,
        "ratio": diff.ratio,
        "limit": diff.limit,
        "verdict": diff.verdict,
        "dtype": diff.dtype,
        "token": diff.token,
        "note": diff.note,
        "ties": diff.ties,
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "measure": decision.measure,
        "site": decision.site and decision.site.path,
        "block": decision.site and decision.site.block,
        "dtype": decision.dtype,
        "kind": decision.kind,
        "prompts": len(decision.ratios),
        "low": decision.low,
        "high": decision.high,
        "limit": decision.limit,
        "verdict": decision.verdict,
        "more": decision.more,
    }
