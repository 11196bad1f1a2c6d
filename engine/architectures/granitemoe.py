"""Granite-MoE: granite with experts, weighed by a softmax over the chosen ones alone."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..names import Name, names
from ..spec import DecoderSpec, MoESpec
from ._granite_like import TINY as BASE
from ._granite_like import multiplied
from ._llama_like import llama_like

_BLOCK, _MLP = "model.layers.{i}.block_sparse_moe", "blocks.{i}.mlp"
_NAMES = (
    Name(_BLOCK, (_MLP,)),
    # A row for each name: that of the checkpoints, and that of transformers 5 in memory.
    Name(f"{_BLOCK}.router.layer", (f"{_MLP}.router",)),
    Name(f"{_BLOCK}.router", (f"{_MLP}.router",)),
    *(
        Name(f"{_BLOCK}.{name}", tuple(f"{_MLP}.experts.{t}" for t in targets), parameter=True)
        for name, targets in {
            "input_linear.weight": ("gate", "up"),
            "output_linear.weight": ("down",),
            "experts.gate_up_proj": ("gate", "up"),
            "experts.down_proj": ("down",),
        }.items()
    ),
    *names({_MLP: None}),
)


def spec(config: Config) -> DecoderSpec:
    bias = config.boolean("attention_bias", False)
    count = config.integer("num_hidden_layers")
    moe = MoESpec(
        experts=config.integer("num_local_experts", 8),
        top_k=config.integer("num_experts_per_tok", 2),
        width=config.integer("intermediate_size"),
        activation=config.text("hidden_act", "silu"),
        scoring="softmax of chosen",
        rounded_weights=True,
    )
    base = llama_like(config, experts=[moe] * count, qkv_bias=bias, out_bias=bias)
    return multiplied(replace(base, names=_NAMES), config)


_TINY = {**BASE, "model_type": "granitemoe", "intermediate_size": 44}
TINY = {
    "plain": {
        **_TINY,
        "attention_bias": False,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
    },
    "tied": {
        **{key: value for key, value in _TINY.items() if key != "rope_theta"},
        "head_dim": 24,
        "num_experts_per_tok": 3,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
}
