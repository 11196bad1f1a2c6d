"""What a model lost by being rounded: its logits on some prompts against those it had before.

Figures over prompts, each with a standard error. Nothing here judges them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from .metrics import kl, log_likelihood

KINDS = ("text", "prompt")  # what users send; where there is none of it, all probes count
# Token ids of a prompt, logits (T, V) now, and before anything was rounded.
Pair = tuple[Sequence[int], np.ndarray, np.ndarray]


def losses(pairs: Iterable[Pair]) -> dict[str, Any]:
    """KL divergence, equal best tokens and the ratio of perplexities: mean and standard error."""
    pairs = list(pairs)
    lost = [
        log_likelihood(before, tokens[1:]) - log_likelihood(after, tokens[1:])
        for tokens, after, before in pairs
        if len(tokens) > 1
    ]
    worse = _summary(lost)
    ratio = math.exp(worse["mean"])
    return {
        "kl": _summary([float(kl(after, before).mean()) for _, after, before in pairs]),
        "top1": _summary(
            [float((after.argmax(1) == before.argmax(1)).mean()) for _, after, before in pairs]
        ),
        "perplexity_ratio": {"mean": ratio, "standard_error": ratio * worse["standard_error"]},
    }


def told(measures: dict[str, Any]) -> str:
    """The figures of `losses` in words."""
    lost, top1, ratio = (measures[key] for key in ("kl", "top1", "perplexity_ratio"))
    return (
        f"KL {lost['mean']:.2e} ± {lost['standard_error']:.0e} nats; top-1 {top1['mean']:.1%} ± "
        f"{top1['standard_error']:.1%}; perplexity times {ratio['mean']:.4g} ± "
        f"{ratio['standard_error']:.2g}"
    )


def _summary(values: Sequence[float]) -> dict[str, float]:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": fmean(values) if values else 0.0, "standard_error": error}
