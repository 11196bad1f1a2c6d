"""Dots1: qwen3's attention, dense MLPs first, then experts chosen by sigmoid scores and a bias."""

from __future__ import annotations

from ..config import Config
from ..names import Name, expert_names
from ..spec import DecoderSpec, MLPSpec, MoESpec
from ._llama_like import TINY as BASE
from ._llama_like import expert_count, llama_like

_NAMES = (
    Name(
        "model.layers.{i}.mlp.gate.e_score_correction_bias",
        ("blocks.{i}.mlp.selection_bias",),
        parameter=True,
    ),
    *expert_names(mlx_lm="experts"),
    Name("model.layers.{i}.mlp.shared_experts", ("blocks.{i}.mlp.shared",)),
    Name("model.layers.{i}.mlp.shared_experts.gate_proj", ("blocks.{i}.mlp.shared.gate",)),
    Name("model.layers.{i}.mlp.shared_experts.up_proj", ("blocks.{i}.mlp.shared.up",)),
    Name("model.layers.{i}.mlp.shared_experts.down_proj", ("blocks.{i}.mlp.shared.down",)),
)


def spec(config: Config) -> DecoderSpec:
    """Experts in groups, of which only some may be chosen from, are refused."""
    config.refuse("n_group", 1)
    config.refuse("topk_group", 1)
    count = config.integer("num_hidden_layers")
    activation = config.text("hidden_act", "silu")
    width = config.integer("moe_intermediate_size", 1408)
    moe = MoESpec(
        experts=expert_count(config, "num_local_experts", "n_routed_experts"),
        top_k=config.integer("num_experts_per_tok"),
        width=width,
        activation=activation,
        scoring="sigmoid",
        selection_bias=True,
        renormalise=config.boolean("norm_topk_prob", False),
        scale=config.number("routed_scaling_factor", 1.0),
        shared=MLPSpec(width * config.integer("n_shared_experts"), activation),
        float32_logits=True,
    )
    dense = config.integer("first_k_dense_replace", 0, minimum=0)
    bias = config.boolean("attention_bias", False)
    return llama_like(
        config,
        kv_heads=32,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        windows=_windows(config, count),
        experts=[None if i < dense else moe for i in range(count)],
        more_names=_NAMES,
    )


def _windows(config: Config, count: int) -> list[int | None]:
    """`sliding_window` null means full attention; absent means 4096 from `max_window_layers` on."""
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
        "tie_word_embeddings": True,
    },
}
