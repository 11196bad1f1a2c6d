"""Qwen3: llama with a norm on q and k before rotary, and no bias unless asked for."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like, qwen_windows


def spec(config: Config) -> DecoderSpec:
    bias = config.boolean("attention_bias", False)
    return llama_like(
        config,
        kv_heads=32,
        head_dim=128,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        windows=qwen_windows(config),
        max_length=32768,
    )


TINY = {
    "plain": {**BASE, "model_type": "qwen3", "head_dim": 24},
    "window": {
        **BASE,
        "model_type": "qwen3",
        "head_dim": 24,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
}
