"""SmolLM3: llama in which every fourth block has no positions, and may have a window for it."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..errors import InvalidConfig
from ..spec import BlockSpec, DecoderSpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like


def spec(config: Config) -> DecoderSpec:
    """`no_rope_layers` says which blocks are rotated: 1 where they are, in spite of its name."""
    count = config.integer("num_hidden_layers")
    interval = config.integer("no_rope_layer_interval", 4)
    rotated = config.integers(
        "no_rope_layers", [int((i + 1) % interval != 0) for i in range(count)]
    )
    if len(rotated) < count:
        raise InvalidConfig(
            f"no_rope_layers has {len(rotated)} entries in {config.where}: "
            f"num_hidden_layers is {count}"
        )
    bias = config.boolean("attention_bias", False)
    base = llama_like(
        config,
        kv_heads=4,
        windows=_windows(config, rotated, count),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=config.boolean("mlp_bias", False),
        theta=2e6,
        max_length=32768,
        tied=True,
    )
    blocks = zip(base.blocks, rotated, strict=False)
    return replace(base, blocks=tuple(b if turn else _without_positions(b) for b, turn in blocks))


def _windows(config: Config, rotated: list[int], count: int) -> list[int | None]:
    """Once `layer_types` is there it decides alone, whatever `use_sliding_window` says."""
    on = config.boolean("use_sliding_window", False) and "sliding_window" in config
    default = [
        "sliding_attention" if on and not turn else "full_attention" for turn in rotated[:count]
    ]
    kinds = config.layer_types(count, default)
    return [
        config.integer("sliding_window") if kind == "sliding_attention" else None for kind in kinds
    ]


def _without_positions(block: BlockSpec) -> BlockSpec:
    return replace(block, attention=replace(block.attention, rope=None))


TINY = {
    "window": {
        **BASE,
        "model_type": "smollm3",
        "num_hidden_layers": 4,
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 8,
        "tie_word_embeddings": True,
    },
    "yarn": {
        **{key: value for key, value in BASE.items() if key != "rope_theta"},
        "model_type": "smollm3",
        "head_dim": 24,
        "no_rope_layers": [0, 1, 1],
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 8,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 5000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 6.0,
        },
    },
}
