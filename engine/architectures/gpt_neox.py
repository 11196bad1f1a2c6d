"""GPT-NeoX, Pythia and their like: queries, keys and values fused head by head, both branches side
by side behind a LayerNorm each, rotary on a part of each head."""

from __future__ import annotations

from ..config import Config
from ..names import Name
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._same_blocks import TINY as BASE
from ._same_blocks import same_blocks


def _names(heads: int) -> tuple[Name, ...]:
    """Each head of the fused matrix holds its query, key and value rows."""
    block, engine = "gpt_neox.layers.{i}", "blocks.{i}"
    qkv = tuple(f"{engine}.attn.{x}" for x in "qkv")
    return (
        Name("gpt_neox.embed_in", ("embed",)),
        Name(block, (engine,)),
        Name(f"{block}.input_layernorm", (f"{engine}.attn_norm",)),
        Name(f"{block}.attention", (f"{engine}.attn",)),
        Name(f"{block}.attention.query_key_value", qkv, groups=heads),
        Name(f"{block}.attention.dense", (f"{engine}.attn.o",)),
        Name(f"{block}.post_attention_layernorm", (f"{engine}.mlp_norm",)),
        Name(f"{block}.mlp", (f"{engine}.mlp",)),
        Name(f"{block}.mlp.dense_h_to_4h", (f"{engine}.mlp.up",)),
        Name(f"{block}.mlp.dense_4h_to_h", (f"{engine}.mlp.down",)),
        Name("gpt_neox.final_layer_norm", ("norm",)),
        Name("embed_out", ("head",)),
        Name("lm_head", ("head",)),  # transformers 5 in memory
    )


def spec(config: Config) -> DecoderSpec:
    """`attention_bias` is of attention alone: the MLP has its biases in any case."""
    config.raw.setdefault("max_position_embeddings", 2048)
    heads = config.integer("num_attention_heads")
    D: int = config.integer("hidden_size") // heads
    bias = config.boolean("attention_bias", True)
    norm = NormSpec("layer", config.number("layer_norm_eps", 1e-5), bias=True)
    attention = AttentionSpec(
        heads=heads,
        kv_heads=heads,
        head_dim=D,
        scale=D**-0.5,
        rope=config.rope(D, theta_key="rotary_emb_base", part=0.25, part_key="rotary_pct"),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MLPSpec(
        config.integer("intermediate_size"),
        config.text("hidden_act", "gelu"),
        gated=False,
        bias=True,
    )
    parallel = config.boolean("use_parallel_residual", True)
    return same_blocks(config, BlockSpec(attention, mlp, norm, parallel=parallel), _names(heads))


_TINY = {**BASE, "model_type": "gpt_neox", "layer_norm_eps": 3e-5}
del _TINY["num_key_value_heads"]
TINY = {
    "parallel": {
        **_TINY,
        "intermediate_size": 288,
        "hidden_act": "gelu_fast",
        "rotary_pct": 0.45,
        "rotary_emb_base": 5000,
    },
    "sequential": {
        **_TINY,
        "use_parallel_residual": False,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "linear",
            "factor": 2.5,
            "rope_theta": 5000.0,
            "partial_rotary_factor": 0.7,
        },
    },
}
