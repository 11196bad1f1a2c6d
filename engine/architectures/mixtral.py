"""Mixtral: mistral with experts in place of the MLP in every block."""

from __future__ import annotations

from ..config import Config
from ..names import expert_names
from ..spec import DecoderSpec, MoESpec
from ._llama_like import TINY as BASE
from ._llama_like import expert_count, llama_like


def spec(config: Config) -> DecoderSpec:
    """`sliding_window` is off unless given, unlike mistral's. Weights are kept in float32."""
    count = config.integer("num_hidden_layers")
    moe = MoESpec(
        experts=expert_count(config, "num_experts", "num_local_experts", 8),
        top_k=config.integer("num_experts_per_tok", 2),
        width=config.integer("intermediate_size"),
        activation=config.text("hidden_act", "silu"),
    )
    return llama_like(
        config,
        kv_heads=8,
        windows=[config.integer("sliding_window", None)] * count,
        experts=[moe] * count,
        more_names=expert_names("block_sparse_moe", gate="w1", up="w3", down="w2"),
        eps=1e-5,
        theta=1e6,
        max_length=4096 * 32,
    )


_TINY = {**BASE, "model_type": "mixtral", "intermediate_size": 44, "rms_norm_eps": 1e-4}
TINY = {
    "full": {**_TINY, "head_dim": 24, "num_local_experts": 6, "sliding_window": None},
    "window": {**_TINY, "num_local_experts": 8, "sliding_window": 8, "tie_word_embeddings": True},
}
