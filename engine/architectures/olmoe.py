"""OLMoE: experts in every block, one norm over all heads of q and of k, both clipped if asked."""

from __future__ import annotations

from ..config import Config
from ..names import expert_names
from ..spec import DecoderSpec, MoESpec
from ._llama_like import TINY as BASE
from ._llama_like import expert_count, llama_like


def spec(config: Config) -> DecoderSpec:
    """`clip_qkv` keeps what the norms gave, and the values, within bounds."""
    config.refuse("sliding_window")
    moe = MoESpec(
        experts=expert_count(config, "num_local_experts", "num_experts", 64),
        top_k=config.integer("num_experts_per_tok", 8),
        width=config.integer("intermediate_size"),
        activation=config.text("hidden_act", "silu"),
        renormalise=config.boolean("norm_topk_prob", False),
        rounded_weights=True,
    )
    bias = config.boolean("attention_bias", False)
    return llama_like(
        config,
        qkv_bias=bias,
        out_bias=bias,
        clip=config.number("clip_qkv", None),
        qk_norm=True,
        qk_norm_over="all heads",
        experts=[moe] * config.integer("num_hidden_layers"),
        more_names=expert_names(),
        eps=1e-5,
        max_length=4096,
    )


_TINY = {
    **BASE,
    "model_type": "olmoe",
    "intermediate_size": 44,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
TINY = {
    "plain": {**_TINY, "norm_topk_prob": True},
    "clipped": {
        **_TINY,
        "clip_qkv": 1.25,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
}
