"""GPT-2: learned positions, LayerNorm with bias, fused q/k/v kept as (in, out) matrices."""

from __future__ import annotations

from ..config import Config
from ..spec import DecoderSpec
from ._gpt2_like import TINY as BASE
from ._gpt2_like import gpt2_like


def spec(config: Config) -> DecoderSpec:
    """`scale_attn_by_inverse_layer_idx` divides block i's scale by i+1."""
    return gpt2_like(
        config,
        activation="gelu_new",
        transpose=True,
        scale_by_depth=config.boolean("scale_attn_by_inverse_layer_idx", False),
    )


_BASE = {**BASE, "model_type": "gpt2", "n_ctx": 256}
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
