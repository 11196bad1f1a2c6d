"""Does the candidate take the reference's greedy tokens, ties apart?"""

from __future__ import annotations

import numpy as np

from ..comparison import Comparison
from ..metrics import FLOOR
from ..policy import TIE
from ..types import FAIL, INCONCLUSIVE, PASS, SKIP, CheckResult, Divergence

ORDER = 90


def run(comparison: Comparison) -> CheckResult:
    """Free-running tokens against the recorded ones; past a tie, teacher-forced ones.

    At a position where the two differ, the oracle's margin between its two best tokens decides:
    within TIE times the reference's own rms error there, either token is right. `steps` has, of
    every position up to the first wrong one, the token expected, the one taken, the margin in
    units of noise, and whether it is a tie.
    """
    name = "greedy"
    probe = next((p for p in comparison.probes if p.prompt is not None), None)
    if probe is None or probe.prompt is None:
        return CheckResult(name, SKIP, "no greedy tokens are on record")
    start, expected = probe.prompt, probe.tokens[probe.prompt :]
    seen = comparison.observation(probe)
    at = np.arange(start - 1, start - 1 + len(expected))  # logits that choose each token
    margin = seen.scores.margin[at]
    noise = np.maximum(seen.scores.noise, FLOOR[comparison.dtype] * seen.scores.peak)[at]
    tie = (margin <= TIE * noise) | ~seen.same_experts[at]

    actual = comparison.candidate.greedy(probe.tokens[:start], len(expected))
    forced = seen.actual[at].argmax(1)
    measures = {
        "tokens": len(expected),
        "smallest_margin_over_noise": float((margin / noise).min()),
        "ties": 0,
        "steps": [],
    }
    free = True
    for i, token in enumerate(expected):
        if free and i >= len(actual):
            text = f"the candidate stopped after {len(actual)} of {len(expected)} tokens"
            return _fails(name, probe.name, text, i, measures)
        taken, best = actual[i] if free else int(forced[i]), int(seen.scores.best[at[i]])
        units = float(margin[i] / noise[i])
        measures["steps"].append([token, taken, units, bool(tie[i])])
        if taken == token and (token == best or tie[i]):
            continue
        if not seen.has_oracle:
            if taken == token:
                continue
            text = f"token {i} is {taken}, not {token}, and no oracle says how near they are"
            return CheckResult(name, INCONCLUSIVE, text, measures)
        if tie[i]:
            measures["ties"] += 1
            free = False
            continue
        how = "" if free else ", teacher-forced"
        text = (
            f"token {i} of {len(expected)} is {taken}, not {best}{how}: "
            f"the reference prefers its own by {units:.0f} times the noise (a tie is {TIE:.0f})"
        )
        return _fails(name, probe.name, text, start + i, measures)
    equal = len(expected) - measures["ties"]
    reason = f"{equal} of {len(expected)} tokens equal"
    if measures["ties"]:
        reason += f", {measures['ties']} tie{'s' if measures['ties'] > 1 else ''}"
    verdict = PASS if seen.has_oracle else INCONCLUSIVE
    return CheckResult(name, verdict, reason, measures)


def _fails(name: str, probe: str, text: str, token: int, measures: dict) -> CheckResult:
    divergence = Divergence(name, probe, text, token=token)
    return CheckResult(name, FAIL, text, measures, divergence=divergence)
