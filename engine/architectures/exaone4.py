"""EXAONE 4: norms after the branches, norms on q and k, and no positions in blocks that see all."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec, RopeSpec
from ._llama_like import TINY as BASE
from ._llama_like import windows_of
from ._olmo_like import olmo_like


def spec(config: Config) -> DecoderSpec:
    """`sliding_window` null: every block sees everything, and has positions."""
    windowed = "sliding_window" in config or "sliding_window" not in config.raw
    kinds = _kinds(config, windowed)

    def rope(block: int, head_dim: int) -> RopeSpec | None:
        return None if windowed and kinds[block] == "full_attention" else config.rope(head_dim)

    return olmo_like(config, kv_heads=32, windows=windows_of(config, kinds), rope=rope)


def _kinds(config: Config, windowed: bool) -> list[str]:
    count = config.integer("num_hidden_layers")
    default = ["full_attention"] * count
    if windowed and "layer_types" not in config:  # beside which the pattern may be "LLLG"
        every = config.integer("sliding_window_pattern", 4)
        default = [
            "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)
        ]
    return config.layer_types(count, default)


_TINY = {**BASE, "model_type": "exaone4", "num_hidden_layers": 4}
TINY = {
    "windows": {**_TINY, "head_dim": 24, "sliding_window": 8, "sliding_window_pattern": 2},
    "full": {
        **_TINY,
        "num_hidden_layers": 3,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 3,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "tie_word_embeddings": True,
    },
}
