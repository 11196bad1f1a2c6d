"""Qwen3-MoE: qwen3 with experts in place of the MLP, in every block or in some of them."""

from __future__ import annotations

from ..config import Config
from ..names import expert_names
from ..spec import DecoderSpec, MoESpec
from ._llama_like import TINY as BASE
from ._llama_like import expert_count, llama_like


def spec(config: Config) -> DecoderSpec:
    """One window for all blocks: unlike the dense family, transformers looks at no layer types."""
    count = config.integer("num_hidden_layers")
    window = None
    if config.boolean("use_sliding_window", False):
        silent = "sliding_window" not in config.raw
        window = config.integer("sliding_window", 4096 if silent else None)
    moe = MoESpec(
        experts=expert_count(config, "num_local_experts", "num_experts", 128),
        top_k=config.integer("num_experts_per_tok", 8),
        width=config.integer("moe_intermediate_size", 768),
        activation=config.text("hidden_act", "silu"),
        renormalise=config.boolean("norm_topk_prob", False),
        rounded_weights=True,
    )
    step = config.integer("decoder_sparse_step", 1)
    dense = config.integers("mlp_only_layers", [])
    bias = config.boolean("attention_bias", False)
    return llama_like(
        config,
        kv_heads=4,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        windows=[window] * count,
        experts=[None if i in dense or (i + 1) % step else moe for i in range(count)],
        more_names=expert_names(),
        max_length=32768,
    )


_TINY = {
    **BASE,
    "model_type": "qwen3_moe",
    "head_dim": 24,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 44,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
TINY = {
    "plain": {**_TINY, "norm_topk_prob": True},
    "sparse": {
        **_TINY,
        "num_hidden_layers": 4,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 8,
        "tie_word_embeddings": True,
    },
}
