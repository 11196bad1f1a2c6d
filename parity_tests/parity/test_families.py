"""Every family of the engine computes what transformers does, found by scanning its folder."""

from __future__ import annotations

import pytest

import harness
from harness.random_models import variants
from parity_tests.parity.test_golden_models import summary

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("family", "variant"), variants())
def test_engine_agrees_with_transformers(random_model, family, variant):
    verdict = harness.compare(random_model(family, variant), "engine", "torch")
    assert verdict.verdict == "pass", summary(verdict)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("family", "variant"),
    [pair for i, pair in enumerate(variants()) if pair[0] not in {p[0] for p in variants()[:i]}],
)
def test_engine_agrees_at_deployment_dtypes(random_model, family, variant, dtype):
    """One variant of each family; the rung comes on top of the float32 one."""
    verdict = harness.compare(random_model(family, variant), "engine", "torch", dtype)
    assert verdict.verdict == "pass", summary(verdict)
    assert {c.dtype for c in verdict.checks} == {"float32", dtype}
