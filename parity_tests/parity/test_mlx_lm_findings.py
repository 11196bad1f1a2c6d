"""What the harness finds in the pinned mlx-lm, and says in words.

Each is a real divergence of mlx-lm 0.32.2 from transformers, read in its source after the harness
named the place. When a newer mlx-lm repairs one, its test fails and is to be removed.
"""

from __future__ import annotations

import pytest

import harness

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    ("family", "variant", "blocks"),
    [("mistral", "window", [0, 1, 2]), ("qwen2", "window", [1, 2]), ("gemma2", "softcaps", [0, 2])],
)
def test_sliding_windows_that_are_ignored(random_model, family, variant, blocks):
    verdict = harness.compare(random_model(family, variant), "mlx-lm", checks=["blocks"])
    assert verdict.exit_status == 1
    assert verdict.checks[0].measures["failed_blocks"] == blocks
    assert verdict.first_divergence.token == 8
    assert "mask, window" in verdict.diagnosis


def test_an_embedding_scale_in_bfloat16_at_every_dtype(random_model):
    verdict = harness.compare(
        random_model("gemma3_text", "local-global"), "mlx-lm", checks=["blocks"]
    )
    assert verdict.exit_status == 1
    assert "embedding" in verdict.diagnosis
    clean = [d for d in verdict.sites if d.site.kind == "block" and d.mode == "isolated"]
    assert all(d.verdict == "pass" for d in clean)


def test_a_clip_of_queries_keys_and_values_that_is_ignored(random_model):
    verdict = harness.compare(random_model("olmoe", "clipped"), "mlx-lm", checks=["blocks"])
    assert verdict.exit_status == 1
    assert "self_attn.query" in verdict.diagnosis
