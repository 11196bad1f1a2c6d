"""OLMo 3: olmo2 with windows in three blocks of four, and scaled rotary in the fourth."""

from __future__ import annotations

from ..config import Config
from ..errors import UnsupportedArchitecture
from ..spec import DecoderSpec, RopeSpec
from ._llama_like import TINY as BASE
from ._llama_like import windows_of
from ._olmo_like import olmo_like


def spec(config: Config) -> DecoderSpec:
    """A top-level `rope_scaling`, and a top-level base too, is that of full attention alone.

    So reads them transformers 5: windows keep a base of 500000 unless `rope_parameters` says
    otherwise, where transformers 4 gave both kinds the base of the configuration.
    """
    if not all(isinstance(v, dict) for v in (config.raw.get("rope_parameters") or {}).values()):
        raise UnsupportedArchitecture(
            f"rope_parameters in {config.where} is not by layer type: transformers passes it over"
        )
    count = config.integer("num_hidden_layers")
    default = ["full_attention" if (i + 1) % 4 == 0 else "sliding_attention" for i in range(count)]
    kinds = config.layer_types(count, default)

    def rope(block: int, head_dim: int) -> RopeSpec:
        full = kinds[block] == "full_attention"
        return config.rope(
            head_dim,
            layer_type=kinds[block],
            theta_key="rope_theta" if full else None,
            default_theta=500_000.0,
            scaled=full,
        )

    bias = config.boolean("attention_bias", False)
    return olmo_like(
        config,
        windows=windows_of(config, kinds),
        rope=rope,
        qk_norm_over="all heads",
        qkv_bias=bias,
        out_bias=bias,
    )


_TINY = {**BASE, "model_type": "olmo3", "num_hidden_layers": 4, "sliding_window": 8}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
TINY = {
    "yarn": {**_TINY, "head_dim": 24, "rope_scaling": {**_YARN, "beta_fast": 4.0}},
    "by layer type": {
        **{key: value for key, value in _TINY.items() if key != "rope_theta"},
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "num_hidden_layers": 3,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0},
        },
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
}
