"""Dots1: qwen3's attention, dense MLPs first, then experts chosen by sigmoid scores and a bias."""

from __future__ import annotations

from ..config import REQUIRED, Config
from ..spec import DecoderSpec
from ._deepseek_like import dense_first, routed_experts, routed_names
from ._llama_like import TINY as BASE
from ._llama_like import llama_like


def spec(config: Config) -> DecoderSpec:
    moe = routed_experts(
        config, count=REQUIRED, top_k=REQUIRED, width=1408, renormalise=False, shared=REQUIRED
    )
    bias = config.boolean("attention_bias", False)
    return llama_like(
        config,
        kv_heads=32,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        windows=_windows(config),
        experts=dense_first(config, moe, 0),
        more_names=routed_names(mlx_lm="experts"),
    )


def _windows(config: Config) -> list[int | None]:
    """`sliding_window` null means full attention; absent means 4096 from `max_window_layers` on."""
    count = config.integer("num_hidden_layers")
    silent = "sliding_window" not in config.raw
    window = config.integer("sliding_window", 4096 if silent else None)
    first = config.integer("max_window_layers", 62, minimum=0)
    default = [
        "sliding_attention" if window and i >= first else "full_attention" for i in range(count)
    ]
    kinds = config.layer_types(count, default)
    return [window if kind == "sliding_attention" else None for kind in kinds]


_TINY = {
    **BASE,
    "model_type": "dots1",
    "head_dim": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 44,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-4,
}
TINY = {
    "plain": {**_TINY, "norm_topk_prob": True, "sliding_window": None},
    "window": {
        **_TINY,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "attention_bias": True,
        "sliding_window": 8,
        "max_window_layers": 1,
        "n_group": 4,
        "topk_group": 2,
        "tie_word_embeddings": True,
    },
}
