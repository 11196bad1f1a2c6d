"""DeepSeek-V3: attention over latent vectors, groups of experts, sigmoid scores and a bias.

Checkpoints carry blocks after the last, trained to draft further tokens, which are passed over.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..spec import DecoderSpec
from ._deepseek_like import TINY as BASE
from ._deepseek_like import deepseek_like, dense_first, draft_blocks, routed_experts


def spec(config: Config) -> DecoderSpec:
    """Keys of the original code that transformers does not look at are refused if they differ."""
    config.refuse("scoring_func", "sigmoid")
    config.refuse("topk_method", "noaux_tc")
    config.refuse("moe_layer_freq", 1)
    moe = routed_experts(config, count=256, top_k=8, width=2048, groups=8, top_groups=4, scale=2.5)
    # An explicit null means no, absence means yes.
    turned = config.boolean("rope_interleave", "rope_interleave" not in config.raw)
    plain = deepseek_like(
        config,
        pairs="neighbours to halves" if turned else "halves",
        experts=dense_first(config, moe, 3),
        max_length=4096,
    )
    return replace(plain, draft_blocks=draft_blocks(config))


_TINY = {**BASE, "model_type": "deepseek_v3", "n_routed_experts": 8, "routed_scaling_factor": 1.5}
TINY = {
    "yarn": {
        **_TINY,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "attention_bias": True,
        "rope_scaling": {
            "type": "yarn",
            "factor": 6.0,
            "original_max_position_embeddings": 48,
            "mscale": 0.707,
            "mscale_all_dim": 1.0,
            "beta_fast": 32,
            "beta_slow": 1,
        },
    },
    "direct": {
        **{key: value for key, value in _TINY.items() if key != "rope_theta"},
        "q_lora_rank": None,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": False,
        "rope_interleave": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "tie_word_embeddings": True,
    },
}
