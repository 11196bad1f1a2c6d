"""Phi-3, 3.5 and 4: llama with fused q/k/v and gate/up, LongRoPE, and heads rotated in part."""

from __future__ import annotations

from dataclasses import replace

from ..config import Config
from ..errors import UnsupportedArchitecture
from ..names import Name, names
from ..spec import DecoderSpec, RopeSpec
from ._llama_like import TINY as BASE
from ._llama_like import llama_like

_ATTN, _MLP = "blocks.{i}.attn", "blocks.{i}.mlp"
_QKV = (f"{_ATTN}.q", f"{_ATTN}.k", f"{_ATTN}.v")
_GATE_UP = (f"{_MLP}.gate", f"{_MLP}.up")
_NAMES = (
    Name("model.layers.{i}.self_attn.qkv_proj", _QKV),
    Name("model.layers.{i}.mlp.gate_up_proj", _GATE_UP),
    *names(dict.fromkeys((*_QKV, *_GATE_UP))),
)


def spec(config: Config) -> DecoderSpec:
    """The first checkpoints call LongRoPE "su" or "yarn"; transformers takes no other scaling."""
    config.raw.setdefault("original_max_position_embeddings", 4096)

    def rope(block: int, head_dim: int) -> RopeSpec:
        found = config.rope(head_dim, part=1.0, types={"su": "longrope", "yarn": "longrope"})
        if found.type not in ("default", "longrope"):
            raise UnsupportedArchitecture(
                f"rotary scaling {found.type!r} in {config.where}: phi3 has longrope alone"
            )
        return found

    base = llama_like(
        config,
        windows=[config.integer("sliding_window", None)] * config.integer("num_hidden_layers"),
        eps=1e-5,
        max_length=4096,
        rope=rope,
    )
    return replace(base, names=_NAMES)


TINY = {
    "longrope": {
        **BASE,
        "model_type": "phi3",
        "hidden_size": 80,
        "partial_rotary_factor": 0.6,
        "original_max_position_embeddings": 64,
        "sliding_window": None,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.05, 1.1, 1.3, 1.2, 1.6],
            "long_factor": [1.1, 1.4, 2.0, 3.5, 5.0, 8.0],
        },
    },
    "window": {
        **{key: value for key, value in BASE.items() if key != "rope_theta"},
        "model_type": "phi3",
        "sliding_window": 8,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
}
