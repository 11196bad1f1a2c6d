"""Qwen2 and 2.5: llama with biases on q, k and v only, and windows in the upper blocks."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like, qwen_windows


def spec(config: Config) -> DecoderSpec:
    return llama_like(
        config, kv_heads=32, qkv_bias=True, windows=qwen_windows(config), max_length=32768
    )


TINY = {
    "plain": {**BASE, "model_type": "qwen2"},
    "window": {
        **BASE,
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
}
