"""What did packing keys and values lose? Reported beside the verdict, and no part of it."""

from __future__ import annotations

from typing import Any

from ..comparison import Comparison
from ..losses import KINDS, losses, told
from ..types import PASS, CheckResult
from . import kv_cache

ORDER = 131
NAME = "kv_loss"
applies = kv_cache.applies


def run(comparison: Comparison) -> CheckResult:
    """KL divergence, best tokens and perplexity against the same model with plain caches."""
    candidate: Any = comparison.candidate
    probes = [probe for probe in comparison.probes if probe.kind in KINDS] or comparison.probes
    measures = losses(
        (probe.tokens, candidate.packed(probe.tokens)[0], candidate.forward(probe.tokens))
        for probe in probes
    )
    measures |= {"prompts": len(probes), "kinds": sorted({probe.kind for probe in probes})}
    reason = f"lost against a plain cache: {told(measures)}"
    return CheckResult(NAME, PASS, reason, measures, reported=True)
