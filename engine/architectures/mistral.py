"""Mistral: llama with a sliding window in every block."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like


def spec(config: Config) -> DecoderSpec:
    """`sliding_window` null means full attention; absent means 4096, as in transformers."""
    window = None
    if "sliding_window" in config or "sliding_window" not in config.raw:
        window = config.integer("sliding_window", 4096)
    windows = [window] * config.integer("num_hidden_layers")
    return llama_like(config, kv_heads=8, windows=windows, max_length=4096 * 32)


TINY = {
    "window": {**BASE, "model_type": "mistral", "head_dim": 24, "sliding_window": 8},
    "full": {**BASE, "model_type": "mistral", "sliding_window": None},
}
