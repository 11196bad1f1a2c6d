"""Llama 1 to 3.x, and everything published as `llama`."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like


def spec(config: Config) -> DecoderSpec:
    """One `attention_bias` covers all four projections, one `mlp_bias` all three."""
    config.refuse("pretraining_tp", 1)
    bias = config.boolean("attention_bias", False)
    return llama_like(
        config, qkv_bias=bias, out_bias=bias, mlp_bias=config.boolean("mlp_bias", False)
    )


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
TINY = {
    "llama3": {
        **BASE,
        "model_type": "llama",
        "head_dim": 24,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": _LLAMA3,
    },
    "linear": {
        **BASE,
        "model_type": "llama",
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    },
    "dynamic": {
        **BASE,
        "model_type": "llama",
        "max_position_embeddings": 48,
        "rope_scaling": {"rope_type": "dynamic", "factor": 3.0},
    },
    "tied": {**BASE, "model_type": "llama", "tie_word_embeddings": True},
}
