"""GPT-2: learned positions, LayerNorm with bias, fused q/k/v kept as (in, out) matrices."""

from __future__ import annotations

from ..config import Config
from ..names import Name
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec

_BLOCK = "transformer.h.{i}"
_NAMES = (
    Name("transformer.wte", ("embed",)),
    Name("transformer.wpe", ("positions",)),
    Name(_BLOCK, ("blocks.{i}",)),
    Name(f"{_BLOCK}.ln_1", ("blocks.{i}.attn_norm",)),
    Name(f"{_BLOCK}.attn", ("blocks.{i}.attn",)),
    Name(
        f"{_BLOCK}.attn.c_attn",
        ("blocks.{i}.attn.q", "blocks.{i}.attn.k", "blocks.{i}.attn.v"),
        transpose=True,
    ),
    Name(f"{_BLOCK}.attn.c_proj", ("blocks.{i}.attn.o",), transpose=True),
    Name(f"{_BLOCK}.ln_2", ("blocks.{i}.mlp_norm",)),
    Name(f"{_BLOCK}.mlp", ("blocks.{i}.mlp",)),
    Name(f"{_BLOCK}.mlp.c_fc", ("blocks.{i}.mlp.up",), transpose=True),
    Name(f"{_BLOCK}.mlp.c_proj", ("blocks.{i}.mlp.down",), transpose=True),
    Name("transformer.ln_f", ("norm",)),
    Name("lm_head", ("head",)),
)


def spec(config: Config) -> DecoderSpec:
    """`scale_attn_by_inverse_layer_idx` divides block i's scale by i+1."""
    config.refuse("add_cross_attention", False)
    width = config.integer("n_embd", 768)
    heads = config.integer("n_head", 12)
    length = config.integer("n_positions", 1024)
    norm = NormSpec("layer", config.number("layer_norm_epsilon", 1e-5), bias=True)
    head_dim = width // heads
    scale = head_dim**-0.5 if config.boolean("scale_attn_weights", True) else 1.0
    by_depth = config.boolean("scale_attn_by_inverse_layer_idx", False)
    activation = config.text("activation_function", "gelu_new")
    mlp = MLPSpec(config.integer("n_inner", 4 * width), activation, gated=False, bias=True)
    blocks = tuple(
        BlockSpec(
            AttentionSpec(
                heads=heads,
                kv_heads=heads,
                head_dim=head_dim,
                scale=scale / (i + 1) if by_depth else scale,
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
        names=_NAMES,
        tied_head=config.boolean("tie_word_embeddings", True),
        max_length=length,
        learned_positions=length,
    )


_BASE = {
    "model_type": "gpt2",
    "vocab_size": 131,
    "n_embd": 60,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 256,
    "n_ctx": 256,
    "layer_norm_epsilon": 1e-4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY = {
    "plain": _BASE,
    "untied": {
        **_BASE,
        "n_inner": 84,
        "activation_function": "gelu",  # exact, where the family's own is the tanh form
        "tie_word_embeddings": False,
        "scale_attn_by_inverse_layer_idx": True,
    },
}
