"""OLMo 2: norms after the branches, and one over all heads of q and of k."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._llama_like import TINY as BASE
from ._olmo_like import olmo_like


def spec(config: Config) -> DecoderSpec:
    bias = config.boolean("attention_bias", False)
    return olmo_like(config, qk_norm_over="all heads", qkv_bias=bias, out_bias=bias)


TINY = {
    "plain": {**BASE, "model_type": "olmo2", "head_dim": 24},
    "tied": {
        **BASE,
        "model_type": "olmo2",
        "attention_bias": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
        "tie_word_embeddings": True,
    },
}
