"""What cohere and cohere2 share: both branches take one LayerNorm of x, neighbours turn together,
and the logits are scaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import Config
from ..names import names
from ..spec import DecoderSpec, NormSpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like

_NAMES = names({"blocks.{i}.mlp_norm": None})


def cohere_like(config: Config, **settings: Any) -> DecoderSpec:
    """`llama_like` with these settings, and with parallel branches."""
    bias = config.boolean("attention_bias", False)
    spec = llama_like(
        config,
        norm=NormSpec("layer", config.number("layer_norm_eps", 1e-5)),
        qkv_bias=bias,
        out_bias=bias,
        max_length=8192,
        **settings,
    )
    return replace(
        spec,
        blocks=tuple(replace(block, parallel=True, one_norm=True) for block in spec.blocks),
        names=_NAMES,
        tied_head=config.boolean("tie_word_embeddings", True),
        logit_scale=config.number("logit_scale", 0.0625),
    )


# A scale that bfloat16 cannot hold.
TINY = {
    **{key: value for key, value in BASE.items() if key != "rms_norm_eps"},
    "layer_norm_eps": 3e-5,
    "logit_scale": 0.83,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
