"""Variants of a tiny model: what is changed in it, where its configuration class has the setting.

Data alone. A variant that changes nothing in a family is not applicable there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PLAIN = "plain"
FLIPPED = "flipped"  # in place of a value: the other truth value than that of the plain model


@dataclass(frozen=True)
class Variant:
    """`settings` are fields of the configuration class, `rotary` goes into its rotary settings.

    `new_weights` says that the model has to have other parameters than the plain one, since a
    configuration class may hold a setting that its model never reads. `factors` says that the
    recipe has more rotary settings; a family without them does not have the variant.
    """

    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rotary: Mapping[str, Any] = field(default_factory=dict)
    new_weights: bool = False
    factors: bool = False


_BIASES = (
    "attention_bias", "attention_out_bias", "mlp_bias", "use_bias", "qkv_bias", "use_qkv_bias",
    "lm_head_bias", "mamba_proj_bias", "mamba_conv_bias", "use_conv_bias", "conv_bias",
    "projectors_bias",
)  # fmt: skip
_TRAINED = {"original_max_position_embeddings": 64}

VARIANTS: dict[str, Variant] = {
    PLAIN: Variant("no window is felt, no rotary scaling, tied or untied as the family does it"),
    "tying": Variant(
        "the output matrix is tied where it was not, untied where it was",
        {"tie_word_embeddings": FLIPPED},
        new_weights=True,
    ),
    "window": Variant(
        "a window of 8 tokens",
        {
            "sliding_window": 8,
            "use_sliding_window": True,
            "max_window_layers": 1,
            "attention_window_size": 8,
            "attention_chunk_size": 8,
        },
    ),
    "bias": Variant(
        "every bias that can be asked for is there, those that can be left out are not",
        dict.fromkeys(_BIASES, FLIPPED),
        new_weights=True,
    ),
    "norms": Variant(
        "norms of queries and keys, where they can be chosen",
        {"use_qk_norm": FLIPPED, "qk_layernorm": FLIPPED, "mamba_rms_norm": FLIPPED},
        new_weights=True,
    ),
    "ungrouped": Variant("as many key/value heads as query heads", {"num_key_value_heads": 4}),
    "width": Variant("heads wider than hidden / heads", {"head_dim": 32}, new_weights=True),
    "router": Variant(
        "the other normalisation of expert weights, and experts chosen within groups",
        {"norm_topk_prob": FLIPPED, "n_group": 4, "topk_group": 2},
    ),
    "linear": Variant(
        "linear rotary scaling", rotary={"rope_type": "linear", "factor": 4.0}
    ),
    "llama3": Variant(
        "llama3 rotary scaling",
        rotary={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            **_TRAINED,
        },
    ),
    "yarn": Variant("YaRN", rotary={"rope_type": "yarn", "factor": 4.0, **_TRAINED}),
    "longrope": Variant(
        "longrope, where it is the family's own scaling",
        rotary={"rope_type": "longrope", **_TRAINED},
        factors=True,
    ),
}  # fmt: skip
