"""StableLM 3B to 2 12B: llama with LayerNorms and rotary on a part of each head; the larger ones
have both branches side by side, and a norm for every head of its own."""

from __future__ import annotations

from ..config import Config
from ..names import Name, names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._same_blocks import TINY as BASE
from ._same_blocks import same_blocks

_ATTENTION = "model.layers.{i}.self_attn"
_NAMES = (
    Name(
        f"{_ATTENTION}.q_layernorm.norms.{{e}}.weight",
        ("blocks.{i}.attn.q_norm.weight",),
        parameter=True,
    ),
    Name(
        f"{_ATTENTION}.k_layernorm.norms.{{e}}.weight",
        ("blocks.{i}.attn.k_norm.weight",),
        parameter=True,
    ),
    *names(
        {
            "blocks.{i}.attn.q_norm": f"{_ATTENTION}.q_layernorm",
            "blocks.{i}.attn.k_norm": f"{_ATTENTION}.k_layernorm",
        }
    ),
)


def spec(config: Config) -> DecoderSpec:
    config.raw.setdefault("max_position_embeddings", 4096)
    heads = config.integer("num_attention_heads", 32)
    D: int = config.integer("hidden_size") // heads
    eps = config.number("layer_norm_eps", 1e-5)
    bias = config.boolean("use_qkv_bias", False)
    parallel = config.boolean("use_parallel_residual", False)
    attention = AttentionSpec(
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", 32),
        head_dim=D,
        scale=D**-0.5,
        rope=config.rope(D, part=0.25),
        qk_norm=NormSpec("layer", eps) if config.boolean("qk_layernorm", False) else None,
        qk_norm_over="each head",
        qkv_bias=bias,
    )
    mlp = MLPSpec(config.integer("intermediate_size"), config.text("hidden_act", "silu"))
    norm = NormSpec("layer", eps, bias=True)
    block = BlockSpec(attention, mlp, norm, parallel=parallel, one_norm=parallel)
    return same_blocks(config, block, _NAMES)


_TINY = {**BASE, "model_type": "stablelm", "layer_norm_eps": 1e-4, "rope_theta": 5000.0}
TINY = {
    "parallel": {
        **_TINY,
        "partial_rotary_factor": 0.45,
        "use_qkv_bias": False,
        "use_parallel_residual": True,
        "qk_layernorm": True,
    },
    "sequential": {**_TINY, "use_qkv_bias": True, "tie_word_embeddings": True},
}
