"""What did quantising a model lose? Reported beside the verdict, and no part of it.

The implementation of a quantised model is judged against its own weights, put back as numbers, so
that this loss cancels there. Here those weights are compared with the original's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.files import ModelFiles
from engine.weights.quantised import quantisation

from ..comparison import Comparison, Observation
from ..errors import BadOption
from ..losses import KINDS, losses, told
from ..types import PASS, SKIP, CheckResult

ORDER = 130
NAME = "quantisation"


def applies(comparison: Comparison) -> bool:
    """Of quantised models, and where an original is named."""
    return comparison.original is not None or _is_quantised(comparison.files)


def run(comparison: Comparison) -> CheckResult:
    """KL divergence, best tokens and perplexity of the reference against the original's.

    Both are computed by the reference's implementation, so that the candidate's has no part in it.
    The size of the loss is no failure.
    """
    original = comparison.original
    if not _is_quantised(comparison.files):
        return CheckResult(NAME, SKIP, "the model is not quantised", reported=True)
    if original is None:
        reason = "what quantising lost is told with --original MODEL"
        return CheckResult(NAME, SKIP, reason, reported=True)
    if comparison.dtype != "float32":
        return CheckResult(NAME, SKIP, "asked once, at float32", reported=True)
    if _is_quantised(original):
        raise BadOption(f"--original {original.name}: it is quantised itself")
    seen = [o for o in comparison.observations() if o.evidence.sketch is None]
    seen = [o for o in seen if o.probe.kind in KINDS] or seen
    if not seen:
        reason = "the golden holds a sketch of the logits, which no other model's compare with"
        return CheckResult(NAME, SKIP, reason, reported=True)
    logits = _logits(comparison, original, seen)
    measures = losses(
        (o.probe.tokens, o.evidence.logits, before) for o, before in zip(seen, logits, strict=True)
    )
    measures |= {"prompts": len(seen), "kinds": sorted({o.probe.kind for o in seen})}
    reason = f"lost against the original: {told(measures)}"
    return CheckResult(NAME, PASS, reason, measures, reported=True)


def _is_quantised(files: ModelFiles) -> bool:
    return quantisation(files.config, str(files.folder / "config.json")) is not None


def _logits(
    comparison: Comparison, original: ModelFiles, seen: Sequence[Observation]
) -> list[np.ndarray]:
    """The original's (T, V) on the same tokens."""
    from ..backends import Request
    from ..backends.torch import load

    ours, theirs = (files.config.get("vocab_size") for files in (comparison.files, original))
    if ours != theirs:
        raise BadOption(
            f"--original {original.name}: vocab_size is {theirs}, and that of "
            f"{comparison.files.name} is {ours}: it is another model"
        )
    backend = load(Request(original, comparison.dtype))
    return [backend.forward(o.probe.tokens) for o in seen]
