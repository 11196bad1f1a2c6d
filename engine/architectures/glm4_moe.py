"""GLM-4.5 and 4.6: heads are rotated in part; experts are chosen by sigmoid scores and a bias."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..spec import DecoderSpec
from ._deepseek_like import dense_first, draft_blocks, routed_experts, routed_names
from ._llama_like import TINY as BASE
from ._llama_like import llama_like


def spec(config: Config) -> DecoderSpec:
    moe = routed_experts(config, count=128, top_k=8, width=1408)
    plain = llama_like(
        config,
        kv_heads=8,
        experts=dense_first(config, moe, 1),
        more_names=routed_names(),
        qkv_bias=config.boolean("attention_bias", False),
        qk_norm=config.boolean("use_qk_norm", False),
        eps=1e-5,
        max_length=131072,
        rope=lambda block, head_dim: config.rope(head_dim, part=0.5),
    )
    return replace(plain, draft_blocks=draft_blocks(config))


_TINY = {
    **BASE,
    "model_type": "glm4_moe",
    "head_dim": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 44,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-4,
}
TINY = {
    "groups": {
        **_TINY,
        "n_group": 4,
        "topk_group": 2,
        "n_shared_experts": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "attention_bias": True,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
    },
    "plain": {
        **{key: value for key, value in _TINY.items() if key != "rope_theta"},
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000.0,
            "partial_rotary_factor": 0.25,
        },
        "tie_word_embeddings": True,
    },
}
