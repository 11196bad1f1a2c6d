"""What gemma2 and gemma3_text share: norms with gain 1+w around both branches, a scaled embedding,
an attention scale of its own, local and global blocks, soft-caps."""

from __future__ import annotations

from collections.abc import Callable

from ..config import Config
from ..names import names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec, RopeSpec

_NAMES = names(
    {
        "blocks.{i}.attn_post_norm": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
        "blocks.{i}.mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
    }
)


def gemma_like(
    config: Config,
    *,
    period: int,
    rope: Callable[[str, int], RopeSpec],
    softcaps: tuple[float | None, float | None],
    qk_norm: bool = False,
    max_length: int,
) -> DecoderSpec:
    """Every `period`-th block is global where `layer_types` is absent.

    `rope(layer_type, head_dim)` gives the rotary embedding of a layer type; `softcaps` the
    defaults for attention and final logits.
    """
    config.refuse("use_bidirectional_attention", False)
    config.raw.setdefault("max_position_embeddings", max_length)
    width = config.integer("hidden_size")
    count = config.integer("num_hidden_layers")
    head_dim = config.integer("head_dim", 256)
    bias = config.boolean("attention_bias", False)
    norm = NormSpec("rms", config.number("rms_norm_eps", 1e-6), offset=1.0)
    window = config.integer("sliding_window", 4096)
    default = [
        "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(count)
    ]

    def block(kind: str) -> BlockSpec:
        attention = AttentionSpec(
            heads=config.integer("num_attention_heads", 8),
            kv_heads=config.integer("num_key_value_heads", 4),
            head_dim=head_dim,
            scale=config.number("query_pre_attn_scalar", 256) ** -0.5,
            rope=rope(kind, head_dim),
            window=window if kind == "sliding_attention" else None,
            softcap=_nullable(config, "attn_logit_softcapping", softcaps[0]),
            qk_norm=norm if qk_norm else None,
            qkv_bias=bias,
            out_bias=bias,
        )
        # `hidden_act` is the older key; transformers reads `hidden_activation` alone.
        activation = config.text("hidden_activation", "gelu_pytorch_tanh")
        mlp = MLPSpec(config.integer("intermediate_size"), activation)
        return BlockSpec(attention, mlp, norm, post_norm=True)

    return DecoderSpec(
        model_type=config.text("model_type"),
        vocab=config.integer("vocab_size"),
        width=width,
        blocks=tuple(block(kind) for kind in config.layer_types(count, default)),
        norm=norm,
        names=_NAMES,
        tied_head=config.boolean("tie_word_embeddings", True),
        max_length=config.integer("max_position_embeddings"),
        embed_scale=width**0.5,
        logit_softcap=_nullable(config, "final_logit_softcapping", softcaps[1]),
    )


def _nullable(config: Config, key: str, default: float | None) -> float | None:
    """A key whose explicit null means off, while its absence means the family's default."""
    return config.number(key, None if key in config.raw else default)


# hidden_size is not a square, so that a rounded embedding scale shows.
TINY = {
    "vocab_size": 131,
    "hidden_size": 60,
    "intermediate_size": 84,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
