"""Phi 1 to 2: attention and MLP side by side behind one LayerNorm, rotary on a part of each head,
biases everywhere, in the head as well."""

from __future__ import annotations

from ..config import Config
from ..names import names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._same_blocks import TINY as BASE
from ._same_blocks import same_blocks

_NAMES = names(
    {
        "blocks.{i}.attn.o": "model.layers.{i}.self_attn.dense",
        "blocks.{i}.attn.q_norm": "model.layers.{i}.self_attn.q_layernorm",
        "blocks.{i}.attn.k_norm": "model.layers.{i}.self_attn.k_layernorm",
        "blocks.{i}.mlp.up": "model.layers.{i}.mlp.fc1",
        "blocks.{i}.mlp.down": "model.layers.{i}.mlp.fc2",
        "norm": "model.final_layernorm",
    }
)


def spec(config: Config) -> DecoderSpec:
    """A tied head is refused: it would be the embedding with a bias of its own."""
    config.refuse("tie_word_embeddings", False)
    config.raw.setdefault("max_position_embeddings", 2048)
    heads = config.integer("num_attention_heads")
    D: int = config.integer("head_dim", config.integer("hidden_size") // heads)
    norm = NormSpec("layer", config.number("layer_norm_eps", 1e-5), bias=True)
    attention = AttentionSpec(
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=D,
        scale=D**-0.5,
        rope=config.rope(D, part=0.5),
        qk_norm=norm if config.boolean("qk_layernorm", False) else None,
        qkv_bias=True,
        out_bias=True,
    )
    mlp = MLPSpec(
        config.integer("intermediate_size"),
        config.text("hidden_act", "gelu_new"),
        gated=False,
        bias=True,
    )
    block = BlockSpec(attention, mlp, norm, parallel=True, one_norm=True)
    return same_blocks(config, block, _NAMES, head_bias=True)


_TINY = {**BASE, "model_type": "phi", "layer_norm_eps": 1e-4, "rope_theta": 5000.0}
TINY = {
    "plain": {**_TINY, "partial_rotary_factor": 0.45},
    "qk-norm": {
        **_TINY,
        "partial_rotary_factor": 0.35,
        "qk_layernorm": True,
        "hidden_act": "gelu",  # exact, where the family's own is the tanh form
    },
}
