"""Gemma 1: llama with norm gains of 1+w, a scaled embedding, heads wider than hidden / heads."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..spec import DecoderSpec, MLPSpec
from ._gemma_like import TINY as BASE
from ._llama_like import llama_like


def spec(config: Config) -> DecoderSpec:
    """`hidden_act` "gelu" is what old checkpoints call the tanh form."""
    config.refuse("use_bidirectional_attention", False)
    bias = config.boolean("attention_bias", False)
    base = llama_like(
        config,
        kv_heads=16,
        head_dim=256,
        qkv_bias=bias,
        out_bias=bias,
        max_length=8192,
        tied=True,
    )
    activation = config.text("hidden_act", "gelu_pytorch_tanh")
    activation = "gelu_pytorch_tanh" if activation == "gelu" else activation
    mlp = MLPSpec(config.integer("intermediate_size"), activation)
    norm = replace(base.norm, offset=1.0)
    return replace(
        base,
        blocks=tuple(replace(block, mlp=mlp, norm=norm) for block in base.blocks),
        norm=norm,
        embed_scale=base.width**0.5,
    )


_TINY = {
    **{k: v for k, v in BASE.items() if k not in ("query_pre_attn_scalar", "sliding_window")},
    "model_type": "gemma",
    "num_hidden_layers": 3,
}
TINY = {
    "plain": {**_TINY, "hidden_act": "gelu", "rope_theta": 5000.0},
    "untied": {
        **_TINY,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5},
    },
}
