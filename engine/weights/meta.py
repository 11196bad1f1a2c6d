"""Meta's own layout of llama, as early MLX conversions have it: names, rotary pairs, params.json.

A checkpoint of this kind becomes one of transformers' kind as it is found and read, so that nothing
behind knows of it. Meta rotates features 2i and 2i+1 of a head together, transformers and the
engine i and i + D/2: the rows of query and key projections change places. Packed rows move like
plain ones.

Sources of the settings: Meta's `params.json`, and the conversions of mlx-examples (llms/llama, 2023
and 2024), which write it as config.json with a few more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from ..errors import CorruptWeights, InvalidConfig, UnsupportedArchitecture

EMBEDDING = "tok_embeddings.weight"
_FORWARD = "layers.0.feed_forward.w1.weight"
_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
_NAME = re.compile(r"(?P<layer>layers\.\d+\.)?(?P<module>.+)\.(?P<kind>[^.]+)")
_BUFFERS = ("rope.freqs",)

# Meta's key -> transformers'; what it is where params.json is silent stands in `normal_config`.
_KEYS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "max_seq_len": "max_position_embeddings",
}
_KEPT = ("model_type", "sliding_window", "quantization", "bos_token_id", "eos_token_id")
# What the shapes say already, and what is of no concern once a model is trained.
_SUPERFLUOUS = ("multiple_of", "ffn_dim_multiplier", "max_batch_size")


def normal_config(
    raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str
) -> dict[str, Any]:
    """config.json of transformers' kind; `shapes` are those of the tensors.

    Raises InvalidConfig, or UnsupportedArchitecture for a setting that changes what is computed.
    """
    for name in (EMBEDDING, _FORWARD):
        if len(shapes.get(name, ())) != 2:
            raise InvalidConfig(
                f"{where} has Meta's settings, and the weights beside it no matrix {name!r}: put "
                "the config.json there that belongs to them"
            )
    known = {*_KEYS, *_KEPT, *_SUPERFLUOUS, "rope_traditional", "use_scaled_rope"}
    if unknown := sorted(key for key in raw if key not in known and raw[key] is not None):
        raise UnsupportedArchitecture(f"{unknown[0]!r} in {where}: not a setting of Meta's llama")
    if raw.get("use_scaled_rope"):
        raise UnsupportedArchitecture(
            f"use_scaled_rope is true in {where}, which does not say by what factor: put the "
            "config.json of the same model in transformers' form beside the weights"
        )
    rows, hidden = shapes[EMBEDDING][0], shapes[_FORWARD][0]
    found = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
    found |= {"intermediate_size": hidden, "num_key_value_heads": raw.get("n_heads")}
    found |= {new: raw[old] for old, new in _KEYS.items() if raw.get(old) is not None}
    found |= {key: raw[key] for key in _KEPT if raw.get(key) is not None}
    if raw.get("vocab_size") in (None, -1):  # Meta's params.json leave it to the tokenizer
        found["vocab_size"] = rows
    if raw.get("rope_traditional") is False:  # conversions of models that transformers saved
        found["rope_traditional"] = False
    return {**found, "tie_word_embeddings": "output.weight" not in shapes}


def normal_tensors(
    tensors: Mapping[str, mx.array], config: Mapping[str, Any], where: str
) -> dict[str, mx.array]:
    """Tensors under transformers' names, query and key rows in its order; unread."""
    found, pairs = {}, config.get("rope_traditional") is not False
    for name, array in tensors.items():
        if name in _BUFFERS:
            continue
        match = _NAME.fullmatch(name)
        if match is None or match["module"] not in _NAMES:
            found[name] = array
            continue
        if pairs and match["module"] in ("attention.wq", "attention.wk"):
            array = _halves(array, name, config, where)
        module = _NAMES[match["module"]]
        path = f"model.{match['layer']}{module}" if match["layer"] else module
        found[f"{path}.{match['kind']}"] = array
    return found


def _halves(array: mx.array, name: str, config: Mapping[str, Any], where: str) -> mx.array:
    """Rows of every head: the first of each rotary pair, then the second of each."""
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    D = config.get("head_dim") or (width // heads if width and heads else 0)
    rows, *rest = array.shape
    if not isinstance(D, int) or D < 2 or D % 2 or rows % D:
        raise CorruptWeights(
            f"tensor {name!r} in {where} has {rows} rows, which are no heads of width {D}: the "
            "configuration and the weights are not of the same model"
        )
    pairs = array.reshape(rows // D, D // 2, 2, *rest)  # (H*D, ...) -> (H, D/2, 2, ...)
    return pairs.swapaxes(1, 2).reshape(rows, *rest)  # -> (H, 2, D/2, ...) -> (H*D, ...)
