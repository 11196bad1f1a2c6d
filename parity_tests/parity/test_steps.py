"""What decoding runs, site by site: `engine:steps` has the verdict of the engine itself."""

from __future__ import annotations

import pytest

import harness
from engine.fused import FusedAttention
from harness.errors import BadOption

pytestmark = pytest.mark.parity
CHECKS = ["weights", "blocks", "logits", "observer"]


def test_the_compiled_step_passes(golden_model):
    verdict = harness.compare(golden_model, "engine:steps", "golden", checks=CHECKS)
    assert verdict.verdict == "pass", verdict.first_divergence


def test_a_fused_product_in_the_wrong_order_is_found(tiny_llama, monkeypatch):
    """Keys and values exchanged in the step alone, which no pass over a whole sequence runs."""
    right = FusedAttention.heads

    def exchanged(self, *arguments):
        q, k, v = right(self, *arguments)
        return q, v, k

    monkeypatch.setattr(FusedAttention, "heads", exchanged)
    assert harness.compare(tiny_llama, "engine", "golden", checks=["blocks"]).verdict == "pass"
    found = harness.compare(tiny_llama, "engine:steps", "golden", checks=["blocks"])
    assert found.verdict == "fail"
    assert found.first_divergence is not None and found.first_divergence.block == 0


def test_another_word_behind_the_colon_is_refused(tiny_llama):
    with pytest.raises(BadOption, match="engine:step: 'step' is none of steps"):
        harness.compare(tiny_llama, "engine:step", "golden")
