"""Gemma 3, text only: five local blocks to one global, a rotary base for each kind, q/k norms."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec, RopeSpec
from ._gemma_like import TINY as BASE
from ._gemma_like import gemma_like


def spec(config: Config) -> DecoderSpec:
    """Scaling applies to global blocks only; local ones keep their own base."""

    def rope(kind: str, head_dim: int) -> RopeSpec:
        if kind == "full_attention":
            return config.rope(head_dim, layer_type=kind, default_theta=1_000_000.0)
        return config.rope(
            head_dim, layer_type=kind, theta_key="rope_local_base_freq", scaled=False
        )

    return gemma_like(
        config,
        period=config.integer("sliding_window_pattern", 6),
        rope=rope,
        softcaps=(None, None),
        qk_norm=True,
        max_length=131_072,
    )


TINY = {
    "local-global": {
        **BASE,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "sliding_window_pattern": 3,
        "rope_theta": 20000.0,
        "rope_local_base_freq": 3000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
}
