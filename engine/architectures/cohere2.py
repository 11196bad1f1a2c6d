"""Command R7B and A: cohere with windows; every fourth block sees all and has no positions."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec, RopeSpec
from ._cohere_like import TINY as BASE
from ._cohere_like import cohere_like
from ._llama_like import windows_of


def spec(config: Config) -> DecoderSpec:
    count = config.integer("num_hidden_layers")
    every = config.integer("sliding_window_pattern", 4)
    default = [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)
    ]
    windows = windows_of(config, config.layer_types(count, default))

    def rope(block: int, head_dim: int) -> RopeSpec | None:
        return config.rope(head_dim, pairs="neighbours") if windows[block] else None

    return cohere_like(config, windows=windows, rope=rope)


_TINY = {**BASE, "model_type": "cohere2", "sliding_window": 8}
TINY = {
    "windows": {**_TINY, "num_hidden_layers": 4, "attention_bias": True},
    "by layer type": {
        **_TINY,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
        "tie_word_embeddings": False,
    },
}
