"""Are a server's log-probabilities of the tokens it takes the oracle's, as far as it shows them?"""

from __future__ import annotations

import numpy as np

from ..answers import undecided
from ..comparison import Comparison
from ..metrics import rms
from ..types import FAIL, INCONCLUSIVE, LOGITS, PASS, SKIP, CheckResult, Divergence
from ._served import applies, hint, oracle, served

__all__ = ["ORDER", "applies", "run"]
ORDER = 94

# Whose limits judge it: this error grows with that of the logits, as the root of the KL divergence
# does. In 88 clean runs of engine and mlx-lm on 36 random models, at float32 and bfloat16, it was
# at most 2.7 times the noise over 64 tokens, and 5.5 over the first 16: fewer are not judged.
# (The limits there are 4.9 and 6.4.)
MEASURE = "distribution"
LEAST = 16


def run(comparison: Comparison) -> CheckResult:
    """The rms error in nats over the tokens that are the reference's, over the reference's own.

    A token's noise counts as no less than half a unit of roundoff of the dtype at the largest
    logit, and no less than half of the last digit printed: a server that prints three decimals can
    be judged to three decimals.
    """
    name = "logprobs"
    s = served(comparison)
    if isinstance(s, str):
        return CheckResult(name, SKIP, s)
    if not s.told.logprobs:
        return CheckResult(name, SKIP, "the server gives no log-probabilities")
    o = oracle(comparison, s.probe)
    n = min(s.aligned, len(s.told.logprobs))
    kept = ~o.loose[:n]
    if kept.sum() < LEAST:
        reason = f"known of {kept.sum()} tokens that are the reference's; {LEAST} are needed"
        return CheckResult(name, SKIP, reason)
    expected, twin = (each[:n][kept] for each in o.logprobs(s.probe.tokens))
    actual = np.array(s.told.logprobs[:n])[kept]
    printed = np.array(s.told.digits[:n])[kept] / 2
    floor = np.maximum(o.floor[:n][kept], printed)
    error, noise = rms(actual - expected), max(rms(twin - expected), rms(floor))
    ratio = error / noise if np.isfinite(error) else float("inf")
    measures = {
        "tokens": len(actual),
        "error": error,
        "noise": noise,
        "ratio": ratio,
        "last_digit": float(2 * printed.max()),
    }
    decision = comparison.decide(
        MEASURE, s.probe.kind, [ratio], 1, site=LOGITS, has_oracle=o.has_oracle
    )
    if decision.verdict == FAIL:
        off = np.abs(actual - expected)
        worst = int(np.argmax(np.where(np.isfinite(off), off, np.inf)))
        token = int(np.flatnonzero(kept)[worst])
        message = (
            f"log-probabilities are {ratio:.3g} times the noise (limit {decision.limit:g}), over "
            f"{len(actual)} tokens; that of token {token} is {actual[worst]:.7g}, not "
            f"{expected[worst]:.7g}{hint(comparison)}"
        )
        divergence = Divergence(
            name, s.probe.name, message, LOGITS.path, None, error, noise, ratio, decision.limit,
            (s.probe.prompt or 0) + token,
        )  # fmt: skip
        return CheckResult(name, FAIL, message, measures, divergence=divergence)
    if decision.verdict == INCONCLUSIVE:
        return CheckResult(name, INCONCLUSIVE, undecided([decision]), measures)
    reason = f"{len(actual)} tokens, rms error {error:.1e} nats, {ratio:.1f} x noise"
    if rms(printed) >= rms(twin - expected):
        reason += f", which is that of printing: digits end at {2 * printed.max():.0e}"
    return CheckResult(name, PASS, reason, measures)
