"""What gpt2 and gpt_bigcode share: learned positions, LayerNorms, fused q/k/v, ungated MLPs, biases
everywhere."""

from __future__ import annotations

from ..config import Config
from ..names import Name
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec

_ALIASES = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
}


def gpt2_like(
    config: Config,
    *,
    activation: str,
    one_kv_head: bool = False,
    by_head: bool = False,
    transpose: bool = False,
    scale_by_depth: bool = False,
) -> DecoderSpec:
    """`by_head`: q, k and v are fused head by head. `transpose`: the matrices of a block are kept
    as (in, out). `scale_by_depth` divides the scale of block i by i+1."""
    config.refuse("add_cross_attention", False)
    for alias, key in _ALIASES.items():  # transformers takes either, the alias first
        if alias in config:
            config.raw[key] = config.raw[alias]
    width = config.integer("n_embd", 768)
    heads = config.integer("n_head", 12)
    length = config.integer("n_positions", 1024)
    norm = NormSpec("layer", config.number("layer_norm_epsilon", 1e-5), bias=True)
    head_dim = width // heads
    scale = head_dim**-0.5 if config.boolean("scale_attn_weights", True) else 1.0
    activation = config.text("activation_function", activation)
    mlp = MLPSpec(config.integer("n_inner", 4 * width), activation, gated=False, bias=True)
    blocks = tuple(
        BlockSpec(
            AttentionSpec(
                heads=heads,
                kv_heads=1 if one_kv_head else heads,
                head_dim=head_dim,
                scale=scale / (i + 1) if scale_by_depth else scale,
                qkv_bias=True,
                out_bias=True,
            ),
            mlp,
            norm,
        )
        for i in range(config.integer("n_layer", 12))
    )
    return DecoderSpec(
        model_type=config.text("model_type"),
        vocab=config.integer("vocab_size", 50257),
        width=width,
        blocks=blocks,
        norm=norm,
        names=_names(heads if by_head else 1, transpose),
        tied_head=config.boolean("tie_word_embeddings", True),
        max_length=length,
        learned_positions=length,
    )


def _names(groups: int, transpose: bool) -> tuple[Name, ...]:
    block, engine = "transformer.h.{i}", "blocks.{i}"
    qkv = tuple(f"{engine}.attn.{x}" for x in "qkv")
    return (
        Name("transformer.wte", ("embed",)),
        Name("transformer.wpe", ("positions",)),
        Name(block, (engine,)),
        Name(f"{block}.ln_1", (f"{engine}.attn_norm",)),
        Name(f"{block}.attn", (f"{engine}.attn",)),
        Name(f"{block}.attn.c_attn", qkv, transpose, groups=groups),
        Name(f"{block}.attn.c_proj", (f"{engine}.attn.o",), transpose),
        Name(f"{block}.ln_2", (f"{engine}.mlp_norm",)),
        Name(f"{block}.mlp", (f"{engine}.mlp",)),
        Name(f"{block}.mlp.c_fc", (f"{engine}.mlp.up",), transpose),
        Name(f"{block}.mlp.c_proj", (f"{engine}.mlp.down",), transpose),
        Name("transformer.ln_f", ("norm",)),
        Name("lm_head", ("head",)),
    )


TINY = {
    "vocab_size": 131,
    "n_embd": 60,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 256,
    "layer_norm_epsilon": 1e-4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
