"""ERNIE 4.5, dense: llama rotated in neighbours, with one setting for every bias."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like


def spec(config: Config) -> DecoderSpec:
    bias = config.boolean("use_bias", False)
    return llama_like(
        config,
        kv_heads=2,
        head_dim=128,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        eps=1e-5,
        max_length=131_072,
        tied=True,
        rope=lambda block, head_dim: config.rope(head_dim, default_theta=5e5, pairs="neighbours"),
    )


_TINY = {**BASE, "model_type": "ernie4_5", "head_dim": 24}
TINY = {
    "plain": {**_TINY, "use_bias": False, "tie_word_embeddings": True},
    "bias": {
        **{key: value for key, value in _TINY.items() if key != "rope_theta"},
        "use_bias": True,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5},
    },
}
