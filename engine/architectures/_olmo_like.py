"""What olmo2, olmo3 and exaone4 share: branches that take x as it is and are normalised after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import Config
from ..names import names
from ..spec import DecoderSpec
from ._llama_like import llama_like

_NAMES = names(
    {
        "blocks.{i}.attn_norm": None,
        "blocks.{i}.attn_post_norm": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.mlp_norm": None,
        "blocks.{i}.mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
    }
)


def olmo_like(config: Config, **settings: Any) -> DecoderSpec:
    """`llama_like` with these settings, its norms moved, and a norm on q and k."""
    spec = llama_like(config, qk_norm=True, eps=1e-5, **settings)
    blocks = tuple(replace(block, pre_norm=False, post_norm=True) for block in spec.blocks)
    return replace(spec, blocks=blocks, names=_NAMES)
