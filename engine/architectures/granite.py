"""Granite 3: llama with four multipliers."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._granite_like import TINY as BASE
from ._granite_like import multiplied
from ._llama_like import llama_like


def spec(config: Config) -> DecoderSpec:
    bias = config.boolean("attention_bias", False)
    base = llama_like(
        config, qkv_bias=bias, out_bias=bias, mlp_bias=config.boolean("mlp_bias", False)
    )
    return multiplied(base, config)


TINY = {
    "tied": {
        **BASE,
        "model_type": "granite",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
    },
    "bias": {
        **{key: value for key, value in BASE.items() if key != "rope_theta"},
        "model_type": "granite",
        "head_dim": 24,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
}
