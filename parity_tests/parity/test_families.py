"""Every family of the engine computes what transformers does, found by scanning its folder."""

from __future__ import annotations

import pytest

import harness
from harness.random_models import variants
from parity_tests.parity.test_golden_models import summary

pytestmark = pytest.mark.parity


RUNGS = ("bfloat16", "float16", "float32")  # of a family's first, second and further variants


def judged() -> list[tuple[str, str, str]]:
    """Every variant, at float32 and a dtype of deployment by turns; the full run takes all."""
    seen: dict[str, int] = {}
    found = []
    for family, variant in variants():
        found.append((family, variant, RUNGS[min(seen.get(family, 0), len(RUNGS) - 1)]))
        seen[family] = seen.get(family, 0) + 1
    return found


@pytest.mark.parametrize(("family", "variant", "dtype"), judged())
def test_engine_agrees_with_transformers(random_model, family, variant, dtype):
    """A rung of another dtype comes on top of the float32 one."""
    verdict = harness.compare(random_model(family, variant), "engine", "torch", dtype)
    assert verdict.verdict == "pass", summary(verdict)
    assert {c.dtype for c in verdict.checks} == {"float32", dtype}
