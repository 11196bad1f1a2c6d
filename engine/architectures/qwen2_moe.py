"""Qwen1.5-MoE and Qwen2-MoE: qwen2 with experts, and one that every token shares behind a gate."""

from __future__ import annotations

from ..config import Config
from ..names import Name, expert_names
from ..spec import DecoderSpec, MLPSpec, MoESpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like, windows_of

_SHARED = "model.layers.{i}.mlp.shared_expert"
_NAMES = (
    *expert_names(),
    Name(f"{_SHARED}_gate", ("blocks.{i}.mlp.shared_gate",)),
    Name(_SHARED, ("blocks.{i}.mlp.shared",)),
    Name(f"{_SHARED}.gate_proj", ("blocks.{i}.mlp.shared.gate",)),
    Name(f"{_SHARED}.up_proj", ("blocks.{i}.mlp.shared.up",)),
    Name(f"{_SHARED}.down_proj", ("blocks.{i}.mlp.shared.down",)),
)


def spec(config: Config) -> DecoderSpec:
    count = config.integer("num_hidden_layers")
    activation = config.text("hidden_act", "silu")
    moe = MoESpec(
        experts=config.integer("num_experts", 60),
        top_k=config.integer("num_experts_per_tok", 4),
        width=config.integer("moe_intermediate_size", 1408),
        activation=activation,
        renormalise=config.boolean("norm_topk_prob", False),
        shared=MLPSpec(config.integer("shared_expert_intermediate_size", 5632), activation),
        shared_gate=True,
        rounded_weights=True,
    )
    step = config.integer("decoder_sparse_step", 1)
    dense = config.integers("mlp_only_layers", [])
    return llama_like(
        config,
        kv_heads=16,
        qkv_bias=config.boolean("qkv_bias", True),
        windows=_windows(config, count),
        experts=[None if i in dense or (i + 1) % step else moe for i in range(count)],
        more_names=_NAMES,
        max_length=32768,
    )


def _windows(config: Config, count: int) -> list[int | None]:
    """Off unless `use_sliding_window`, then on in every other block below `max_window_layers`."""
    if not config.boolean("use_sliding_window", False):
        config.refuse("layer_types", ["full_attention"] * count)
        return [None] * count
    first = config.integer("max_window_layers", 28, minimum=0)
    default = [
        "sliding_attention" if i % 2 == 0 and i < first else "full_attention" for i in range(count)
    ]
    return windows_of(config, config.layer_types(count, default))


_TINY = {
    **BASE,
    "model_type": "qwen2_moe",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 44,
    "shared_expert_intermediate_size": 52,
}
TINY = {
    "plain": {**_TINY, "head_dim": 24, "norm_topk_prob": True},
    "sparse": {
        **_TINY,
        "num_hidden_layers": 4,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "qkv_bias": False,
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
    },
}
