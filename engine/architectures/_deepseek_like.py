"""What the deepseeks share, and those who took parts of them: attention over latent vectors, dense
MLPs first and then routed experts beside shared ones.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config, yarn_mscale
from ..names import Name, expert_names, names
from ..spec import DecoderSpec, LatentAttentionSpec, MLPSpec, MoESpec, NormSpec
from ._llama_like import TINY as BASE
from ._llama_like import expert_count, llama_like

_SHARED = "model.layers.{i}.mlp.shared_experts"


def routed_names(mlx_lm: str = "switch_mlp") -> tuple[Name, ...]:
    """Rows for routed and shared experts; see `expert_names`."""
    return (
        Name(
            "model.layers.{i}.mlp.gate.e_score_correction_bias",
            ("blocks.{i}.mlp.selection_bias",),
            parameter=True,
        ),
        *expert_names(mlx_lm=mlx_lm),
        Name(_SHARED, ("blocks.{i}.mlp.shared",)),
        *(
            Name(f"{_SHARED}.{part}_proj", (f"blocks.{{i}}.mlp.shared.{part}",))
            for part in ("gate", "up", "down")
        ),
    )


_LATENT_NAMES = {
    f"blocks.{{i}}.attn.{ours}": f"model.layers.{{i}}.self_attn.{theirs}"
    for ours, theirs in {
        "q_down": "q_a_proj",
        "q_norm": "q_a_layernorm",
        "q_up": "q_b_proj",
        "kv_down": "kv_a_proj_with_mqa",
        "kv_norm": "kv_a_layernorm",
        "kv_up": "kv_b_proj",
    }.items()
}


def dense_first(config: Config, moe: MoESpec, dense: int) -> list[MoESpec | None]:
    """The experts of each block: none in the first blocks, by default in the first `dense`."""
    first = config.integer("first_k_dense_replace", dense, minimum=0)
    return [None if i < first else moe for i in range(config.integer("num_hidden_layers"))]


def routed_experts(
    config: Config,
    *,
    count: int,
    top_k: int,
    width: int,
    groups: int = 1,
    top_groups: int = 1,
    renormalise: bool = True,
    scale: float = 1.0,
    shared: int = 1,
) -> MoESpec:
    """Experts by sigmoid scores and a selection bias, within groups, beside shared ones.

    The arguments are a family's own defaults, or REQUIRED.
    """
    width = config.integer("moe_intermediate_size", width)
    return MoESpec(
        experts=expert_count(config, "num_local_experts", "n_routed_experts", count),
        top_k=config.integer("num_experts_per_tok", top_k),
        width=width,
        activation=config.text("hidden_act", "silu"),
        scoring="sigmoid",
        selection_bias=True,
        groups=config.integer("n_group", groups),
        top_groups=config.integer("topk_group", top_groups),
        renormalise=config.boolean("norm_topk_prob", renormalise),
        scale=config.number("routed_scaling_factor", scale),
        shared=shared_experts(config, width, shared),
        float32_logits=True,
    )


def shared_experts(config: Config, width: int, default: int, bias: bool = False) -> MLPSpec:
    """All shared experts as the one MLP that they are, `width` wide each."""
    count: int = config.integer("n_shared_experts", default)
    return MLPSpec(width * count, config.text("hidden_act", "silu"), bias=bias)


def draft_blocks(config: Config) -> int:
    """How many blocks for drafting a checkpoint carries; transformers goes by the older key."""
    default = config.integer("num_mtp_layers", 1, minimum=0)
    return config.integer("num_nextn_predict_layers", default, minimum=0)


def deepseek_like(
    config: Config,
    *,
    pairs: str,
    experts: list[MoESpec | None],
    mlp_bias: bool = False,
    max_length: int,
) -> DecoderSpec:
    """A decoder with attention over latent vectors; `pairs` are the rotary ones."""
    heads = config.integer("num_attention_heads")
    config.refuse("num_key_value_heads", heads)
    rope_dim: int = config.integer("qk_rope_head_dim", 64)
    config.raw["head_dim"] = rope_dim  # whatever it says, as transformers does
    plain = llama_like(config, mlp_bias=mlp_bias, experts=experts, max_length=max_length)
    attention = _attention(config, heads, rope_dim, pairs)
    return replace(
        plain,
        blocks=tuple(replace(block, attention=attention) for block in plain.blocks),
        names=(*routed_names(), *names(_LATENT_NAMES)),
    )


def _attention(config: Config, heads: int, rope_dim: int, pairs: str) -> LatentAttentionSpec:
    """With a rotary scaling `mscale_all_dim` sharpens all of attention, not the rotated part alone.

    The norms of the latent vectors have an epsilon of their own, which no key changes.
    """
    nope_dim: int = config.integer("qk_nope_head_dim", 128)
    rope = config.rope(rope_dim, pairs=pairs)
    scale = (nope_dim + rope_dim) ** -0.5
    if rope.type != "default":
        scale *= yarn_mscale(rope.factor, config.rotary("mscale_all_dim", 0.0)) ** 2
    # An explicit null means that queries are made in one product.
    query_rank = config.integer("q_lora_rank", None if "q_lora_rank" in config.raw else 1536)
    return LatentAttentionSpec(
        heads=heads,
        query_rank=query_rank,
        latent_rank=config.integer("kv_lora_rank", 512),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=config.integer("v_head_dim", 128),
        scale=scale,
        rope=rope,
        norm=NormSpec("rms", 1e-6),
        bias=config.boolean("attention_bias", False),
    )


# Small enough for a test; widths of the parts of a head differ from each other.
TINY = {
    **{key: value for key, value in BASE.items() if key != "num_key_value_heads"},
    "num_key_value_heads": 4,
    "q_lora_rank": 36,
    "kv_lora_rank": 28,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 16,
    "moe_intermediate_size": 44,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-4,
}
