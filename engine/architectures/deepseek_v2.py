"""DeepSeek-V2: attention over latent vectors, experts by softmax, from some groups or all."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..errors import UnsupportedArchitecture
from ..spec import DecoderSpec, MoESpec
from ._deepseek_like import TINY as BASE
from ._deepseek_like import deepseek_like, dense_first, shared_experts
from ._llama_like import expert_count


def spec(config: Config) -> DecoderSpec:
    """Weights are not renormalised, and transformers cannot: asking for it is refused."""
    config.refuse("scoring_func", "softmax")
    config.refuse("norm_topk_prob", False)
    config.refuse("moe_layer_freq", 1)
    method = config.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise UnsupportedArchitecture(
            f"topk_method is {method!r} in {config.where}: supported is 'greedy' or "
            "'group_limited_greedy'"
        )
    width: int = config.integer("moe_intermediate_size", 1407)
    bias = config.boolean("mlp_bias", False)
    moe = MoESpec(
        experts=expert_count(config, "num_experts", "n_routed_experts", 64),
        top_k=config.integer("num_experts_per_tok"),
        width=width,
        activation=config.text("hidden_act", "silu"),
        renormalise=False,
        scale=config.number("routed_scaling_factor", 1.0),
        shared=shared_experts(config, width, 2, bias),
        float32_logits=True,
    )
    if method != "greedy":
        groups, top_groups = config.integer("n_group"), config.integer("topk_group")
        moe = replace(moe, groups=groups, top_groups=top_groups, group_best=1)
    return deepseek_like(
        config,
        pairs="neighbours",
        experts=dense_first(config, moe, 0),
        mlp_bias=bias,
        max_length=2048,
    )


_TINY = {**BASE, "model_type": "deepseek_v2", "n_routed_experts": 8, "norm_topk_prob": False}
TINY = {
    "groups": {
        **_TINY,
        "n_group": 4,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 1.5,
        "attention_bias": True,
        "rope_scaling": {
            "type": "yarn",
            "factor": 6.0,
            "original_max_position_embeddings": 48,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
        },
    },
    "greedy": {
        **{key: value for key, value in _TINY.items() if key != "rope_theta"},
        "q_lora_rank": None,
        "n_shared_experts": 1,
        "topk_method": "greedy",
        "mlp_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "tie_word_embeddings": True,
    },
}
