"""Does the candidate's tokenizer do what the reference's does?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..comparison import Comparison
from ..probes import TEXTS
from ..tokenizers import Findings, compare
from ..tokenizers.questions import ASKED_OF_MODELS
from ..types import FAIL, PASS, SKIP, CheckResult, Divergence

ORDER = 20
RANDOM = 100  # texts; `harness tokenizer` asks more


def run(comparison: Comparison) -> CheckResult:
    """Ids of the probe texts, BOS, EOS, and that every reachable id has an embedding row; and what
    `harness tokenizer` asks, where both sides can show their whole tokenizer."""
    name = "tokens"
    if comparison.dtype != "float32":
        return CheckResult(name, SKIP, "asked once, at float32")
    expected = comparison.reference.tokens()
    if expected is None:
        return CheckResult(name, SKIP, "the reference shows no tokenizer")
    actual = comparison.candidate.tokens(list(expected.ids))
    if actual is None:
        return CheckResult(name, SKIP, f"{comparison.candidate.name} has no tokenizer")
    measures = {
        "texts": len(expected.ids),
        "bos_id": actual.bos_id,
        "eos_ids": list(actual.eos_ids),
        "max_id": actual.max_id,
        "embedding_rows": actual.rows,
    }
    problem = None
    labels = {text: label for label, text in TEXTS.items()}
    for text, ids in expected.ids.items():
        if actual.ids[text] != ids and problem is None:
            label = labels.get(text, "text")
            problem = f"{label} {text!r}: {_ids(actual.ids[text])}, not {_ids(ids)}"
    if problem is None and actual.bos_id != expected.bos_id:
        problem = f"BOS is {actual.bos_id}, not {expected.bos_id}"
    if problem is None and actual.eos_ids != expected.eos_ids:
        problem = f"EOS is {list(actual.eos_ids)}, not {list(expected.eos_ids)}"
    if problem is None and actual.max_id >= actual.rows:
        problem = f"id {actual.max_id} has no row in an embedding of {actual.rows}"
    if problem is None and (findings := _findings(comparison)) is not None:
        measures |= _measures(findings)
        problem = _problem(findings)
    if problem is not None:
        return CheckResult(
            name, FAIL, problem, measures, divergence=Divergence(name, "texts", problem)
        )
    bos = "no BOS" if actual.bos_id is None else f"BOS {actual.bos_id}"
    eos = ", ".join(map(str, actual.eos_ids)) or "none"
    return CheckResult(name, PASS, f"{len(expected.ids)} texts equal, {bos}, EOS {eos}", measures)


def _findings(comparison: Comparison) -> Findings | None:
    """Everything the reference shows, asked of the candidate; None where one shows too little."""
    sides = [getattr(side, "side", None) for side in (comparison.reference, comparison.candidate)]
    expected, actual = (side() if side else None for side in sides)
    if expected is None or actual is None:
        return None
    return compare(expected, actual, RANDOM, questions=ASKED_OF_MODELS)


def _measures(findings: Findings) -> dict[str, Any]:
    return {
        "random_texts": findings.random,
        "questions": {a.question: [a.verdict, a.asked, a.differences] for a in findings.answers},
        "states": [asdict(state) for state in findings.states],
    }


def _problem(findings: Findings) -> str | None:
    first = findings.first
    if first is None or first.smallest is None:
        return None
    shown = first.smallest
    return f"{first.question} of {shown.input}: {shown.actual}, not {shown.expected}"


def _ids(ids: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, ids[:8]))
    return f"[{shown}, ... {len(ids)} ids]" if len(ids) > 8 else f"[{shown}]"
