"""Gemma 2: local and global blocks by turns, soft-capped attention and final logits."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._gemma_like import TINY as BASE
from ._gemma_like import gemma_like


def spec(config: Config) -> DecoderSpec:
    return gemma_like(
        config,
        period=2,
        rope=lambda kind, head_dim: config.rope(head_dim),
        softcaps=(50.0, 30.0),
        max_length=8192,
    )


# Soft-caps low enough to bend the logits of a small random model.
TINY = {
    "softcaps": {
        **BASE,
        "model_type": "gemma2",
        "num_hidden_layers": 4,
        "rope_theta": 5000.0,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
}
