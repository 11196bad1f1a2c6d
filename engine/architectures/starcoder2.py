"""StarCoder2: LayerNorms, an MLP of two matrices, biases everywhere, a window in every block."""

from __future__ import annotations

from ..config import Config
from ..names import names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._same_blocks import TINY as BASE
from ._same_blocks import same_blocks

_NAMES = names(
    {
        "blocks.{i}.mlp.up": "model.layers.{i}.mlp.c_fc",
        "blocks.{i}.mlp.down": "model.layers.{i}.mlp.c_proj",
    }
)


def spec(config: Config) -> DecoderSpec:
    """One `use_bias` covers all six products of a block."""
    config.raw.setdefault("max_position_embeddings", 4096)
    heads = config.integer("num_attention_heads", 24)
    D: int = config.integer("head_dim", config.integer("hidden_size") // heads)
    bias = config.boolean("use_bias", True)
    attention = AttentionSpec(
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", 2),
        head_dim=D,
        scale=D**-0.5,
        rope=config.rope(D),
        window=config.integer("sliding_window", None),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MLPSpec(
        config.integer("intermediate_size"),
        config.text("hidden_act", "gelu_pytorch_tanh"),
        gated=False,
        bias=bias,
    )
    norm = NormSpec("layer", config.number("norm_epsilon", 1e-5), bias=True)
    return same_blocks(config, BlockSpec(attention, mlp, norm), _NAMES, tied=True)


_TINY = {**BASE, "model_type": "starcoder2", "norm_epsilon": 3e-5, "rope_theta": 5000.0}
TINY = {
    "window": {**_TINY, "sliding_window": 8, "tie_word_embeddings": False},
    "full": {**_TINY, "head_dim": 24, "use_bias": False, "sliding_window": None},
}
