"""Nemotron 3 and 4, Minitron: LayerNorms with gain 1+w, an MLP of two matrices around a squared
ReLU, rotary on a part of each head."""

from __future__ import annotations

from ..config import Config
from ..names import names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._same_blocks import TINY as BASE
from ._same_blocks import same_blocks


def spec(config: Config) -> DecoderSpec:
    """One `attention_bias` covers all four projections, one `mlp_bias` both."""
    config.raw.setdefault("max_position_embeddings", 4096)
    heads = config.integer("num_attention_heads")
    D: int = config.integer("head_dim", config.integer("hidden_size") // heads)
    bias = config.boolean("attention_bias", False)
    attention = AttentionSpec(
        heads=heads,
        kv_heads=config.integer("num_key_value_heads"),
        head_dim=D,
        scale=D**-0.5,
        rope=config.rope(D, part=0.5),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MLPSpec(
        config.integer("intermediate_size"),
        config.text("hidden_act", "relu2"),
        gated=False,
        bias=config.boolean("mlp_bias", False),
    )
    norm = NormSpec("layer", config.number("norm_eps", 1e-5), offset=1.0, bias=True)
    return same_blocks(config, BlockSpec(attention, mlp, norm), names())


_TINY = {**BASE, "model_type": "nemotron", "hidden_act": "relu2", "norm_eps": 3e-5}
TINY = {
    "plain": {**_TINY, "head_dim": 24, "rope_theta": 5000.0},
    "biases": {
        **_TINY,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000.0,
            "partial_rotary_factor": 0.7,
        },
    },
}
