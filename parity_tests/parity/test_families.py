"""Every family of the engine computes what transformers does, found by scanning its folder."""

from __future__ import annotations

import pytest

import harness
from harness.random_models import variants
from parity_tests.parity.test_golden_models import summary

pytestmark = pytest.mark.parity


RUNGS = ("bfloat16", "float16")  # of the first variant of one family, and of the next


def judged() -> list[tuple[str, str, str]]:
    """Every variant at float32, and a family's first at a dtype of deployment, by turns."""
    first: dict[str, str] = {}
    found = []
    for family, variant in variants():
        new = family not in first
        dtype = first.setdefault(family, RUNGS[len(first) % len(RUNGS)])
        found.append((family, variant, dtype if new else "float32"))
    return found


@pytest.mark.parametrize(("family", "variant", "dtype"), judged())
def test_engine_agrees_with_transformers(random_model, family, variant, dtype):
    """A rung of another dtype comes on top of the float32 one."""
    verdict = harness.compare(random_model(family, variant), "engine", "torch", dtype)
    assert verdict.verdict == "pass", summary(verdict)
    assert {c.dtype for c in verdict.checks} == {"float32", dtype}
