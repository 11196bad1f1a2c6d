"""Command R and R+, Aya: parallel branches, and optionally a LayerNorm for each head of q and k."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._cohere_like import TINY as BASE
from ._cohere_like import cohere_like


def spec(config: Config) -> DecoderSpec:
    return cohere_like(
        config,
        rope=lambda block, head_dim: config.rope(
            head_dim, default_theta=500_000.0, pairs="neighbours"
        ),
        qk_norm=config.boolean("use_qk_norm", False),
        qk_norm_over="each head",
    )


TINY = {
    "plain": {**BASE, "model_type": "cohere", "head_dim": 24, "attention_bias": True},
    "norms": {
        **{key: value for key, value in BASE.items() if key != "rope_theta"},
        "model_type": "cohere",
        "use_qk_norm": True,
        "rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0},
        "tie_word_embeddings": False,
    },
}
