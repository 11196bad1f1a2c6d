"""Helium: llama rotated in neighbours; its heads are as wide together as the hidden state."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like


def spec(config: Config) -> DecoderSpec:
    """`attention_bias` is of queries, keys and values alone."""
    return llama_like(
        config,
        kv_heads=20,
        head_dim=128,
        qkv_bias=config.boolean("attention_bias", False),
        mlp_bias=config.boolean("mlp_bias", False),
        eps=1e-8,
        max_length=4096,
        rope=lambda block, head_dim: config.rope(head_dim, default_theta=1e5, pairs="neighbours"),
    )


_TINY = {**BASE, "model_type": "helium", "head_dim": 18}
TINY = {
    "plain": {**_TINY, "attention_bias": True, "mlp_bias": True},
    "tied": {
        **{key: value for key, value in _TINY.items() if key != "rope_theta"},
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
}
