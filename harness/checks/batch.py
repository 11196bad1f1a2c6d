"""Are the rows of a left-padded batch what each is alone?"""

from __future__ import annotations

from ..comparison import Comparison
from ..probes import decodable_length
from ..routes import answered, measured
from ..types import SKIP, CheckResult, Probe

ORDER = 110
ROWS = 3
DECODED = 4  # tokens fed one by one after the padded prefill


def run(comparison: Comparison) -> CheckResult:
    """Sequences of unequal length in one batch, each against the oracle of it alone.

    The last tokens are fed one by one, as they are when a batch is decoded.
    """
    name = "batch"
    # Past it a rotary base grows with the longest row, so that rows depend on their company.
    room = decodable_length(comparison.files.config)
    probes = rows_of([p for p in comparison.probes if room is None or len(p.tokens) <= room])
    if len(probes) < 2:
        return CheckResult(name, SKIP, "no two probes of different length")
    lengths = [len(probe.tokens) for probe in probes]
    decoded = min(DECODED, min(lengths) - 1)
    chunks = [max(lengths) - decoded] + [1] * decoded
    logits = comparison.candidate.batch([probe.tokens for probe in probes], chunks)
    if logits is None:
        candidate = comparison.candidate
        reason = candidate.limits.get(name, f"{candidate.name} has no batch of these probes")
        return CheckResult(name, SKIP, reason)
    routes = {
        f"row {row}, {len(probe.tokens)} tokens": measured(
            comparison, comparison.observation(probe), actual
        )
        for row, (probe, actual) in enumerate(zip(probes, logits, strict=True))
    }
    return answered(comparison, name, "rows of a batch", routes)


def rows_of(probes: list[Probe]) -> list[Probe]:
    """Probes of different lengths, longest in the middle, the shortest of all left out.

    One token has nothing to attend to but itself, so that it would show no padding.
    """
    lengths = {len(probe.tokens): probe for probe in reversed(probes) if len(probe.tokens) > 1}
    chosen = [lengths[length] for length in sorted(lengths)]
    if len(chosen) > ROWS:
        chosen = [chosen[0], chosen[-1], chosen[len(chosen) // 2]]
    elif len(chosen) == ROWS:
        chosen = [chosen[0], chosen[2], chosen[1]]
    return chosen
