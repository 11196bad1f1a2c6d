"""GPT-OSS: a learned logit per head that takes attention away, windows by turns, clamped experts.

Checkpoints keep each expert's matrices as (in, out), with the columns of gate and up by turns.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..names import Name
from ..spec import DecoderSpec, MoESpec
from ._llama_like import TINY as BASE
from ._llama_like import expert_count, llama_like

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def spec(config: Config) -> DecoderSpec:
    """`hidden_act` is not looked at: gates are x * sigmoid(1.702 x); another slope is refused."""
    config.refuse("swiglu_alpha", 1.702)
    if config.raw.get("rope_parameters") is None:
        config.raw["rope_parameters"] = _YARN
    width: int = config.integer("intermediate_size", 2880)
    moe = MoESpec(
        experts=expert_count(config, "num_experts", "num_local_experts", 128),
        top_k=config.integer("num_experts_per_tok", 4),
        width=width,
        activation="quick_gelu",
        scoring="softmax of chosen",
        clamp=config.number("swiglu_limit", 7.0),
        up_offset=1.0,
        router_bias=True,
        bias=True,
        rounded_weights=True,
    )
    count = config.integer("num_hidden_layers", 36)
    window = config.integer("sliding_window", 128)
    default = ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]
    kinds = config.layer_types(count, default)
    bias = config.boolean("attention_bias", True)
    plain = llama_like(
        config,
        kv_heads=8,
        head_dim=None if "head_dim" in config.raw else 64,
        windows=[window if kind == "sliding_attention" else None for kind in kinds],
        experts=[moe] * count,
        more_names=_names(width),
        qkv_bias=bias,
        out_bias=bias,
        eps=1e-5,
        theta=150000.0,
        max_length=131072,
    )
    norm = replace(plain.norm, float32_gain=True)
    blocks = tuple(
        replace(block, norm=norm, attention=replace(block.attention, sinks=True))
        for block in plain.blocks
    )
    return replace(plain, blocks=blocks, norm=norm)


def _names(width: int) -> tuple[Name, ...]:
    theirs, ours = "model.layers.{i}.mlp", "blocks.{i}.mlp"
    gate_up = f"{ours}.experts.gate", f"{ours}.experts.up"
    biases = f"{ours}.experts.gate_bias", f"{ours}.experts.up_bias"
    down = f"{theirs}.experts.down_proj"
    return (
        Name("model.layers.{i}.self_attn.sinks", ("blocks.{i}.attn.sinks",), parameter=True),
        Name(f"{theirs}.router", (f"{ours}.router",)),
        Name(f"{theirs}.experts.gate_up_proj", gate_up, True, parameter=True, groups=width),
        Name(f"{theirs}.experts.gate_up_proj_bias", biases, parameter=True, groups=width),
        Name(down, (f"{ours}.experts.down",), True, parameter=True),
        Name(f"{down}_bias", (f"{ours}.experts.down_bias",), parameter=True),
    )


# Gates and ups of a small random model go far enough to be clamped at 2.
_TINY = {
    **BASE,
    "model_type": "gpt_oss",
    "num_hidden_layers": 4,
    "head_dim": 24,
    "intermediate_size": 44,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "sliding_window": 8,
    "swiglu_limit": 2.0,
    "rms_norm_eps": 1e-4,
}
TINY = {
    "yarn": {
        **_TINY,
        "rope_scaling": {**_YARN, "factor": 8.0, "original_max_position_embeddings": 48},
    },
    "plain": {
        **_TINY,
        "num_hidden_layers": 3,
        "num_experts_per_tok": 2,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
}
del TINY["plain"]["rope_theta"]
