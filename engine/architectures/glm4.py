"""GLM-4 (0414): norms around both branches, rotary of neighbours on a part of each head, gate and
up of the MLP fused."""

from __future__ import annotations

from ..config import Config
from ..names import Name, names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._same_blocks import TINY as BASE
from ._same_blocks import same_blocks

_NAMES = (
    Name("model.layers.{i}.mlp.gate_up_proj", ("blocks.{i}.mlp.gate", "blocks.{i}.mlp.up")),
    *names(
        {
            "blocks.{i}.mlp.gate": None,
            "blocks.{i}.mlp.up": None,
            "blocks.{i}.attn_post_norm": "model.layers.{i}.post_self_attn_layernorm",
            "blocks.{i}.mlp_post_norm": "model.layers.{i}.post_mlp_layernorm",
        }
    ),
)


def spec(config: Config) -> DecoderSpec:
    """`attention_bias` is of queries, keys and values alone."""
    config.raw.setdefault("max_position_embeddings", 131_072)
    D: int = config.integer("head_dim", 128)
    attention = AttentionSpec(
        heads=config.integer("num_attention_heads", 32),
        kv_heads=config.integer("num_key_value_heads", 2),
        head_dim=D,
        scale=D**-0.5,
        rope=config.rope(D, part=0.5, pairs="neighbours"),
        qkv_bias=config.boolean("attention_bias", True),
    )
    mlp = MLPSpec(config.integer("intermediate_size"), config.text("hidden_act", "silu"))
    norm = NormSpec("rms", config.number("rms_norm_eps", 1.5625e-7))
    return same_blocks(config, BlockSpec(attention, mlp, norm, post_norm=True), _NAMES)


_TINY = {**BASE, "model_type": "glm4", "head_dim": 24, "rms_norm_eps": 3e-5, "rope_theta": 5000.0}
TINY = {
    "plain": {**_TINY, "attention_bias": True, "partial_rotary_factor": 0.5},
    "yarn": {
        **_TINY,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "partial_rotary_factor": 0.35,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}
