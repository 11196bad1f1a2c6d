"""The same model for the engine and for mlx-lm, in one process: from a folder, or made at random.

What the benchmarks of speed share. The made ones have the shapes of llama models and weights that
nobody has to fetch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from engine.architectures import decoder_spec
from engine.config import Config
from engine.decoder import Decoder
from engine.files import find_model
from engine.layers.packed import pack
from engine.model import Model, load
from engine.tokenizer import load_tokenizer
from engine.weights.arrange import arrange
from engine.weights.quantised import packed_places, quantisation

# hidden, blocks, heads, key/value heads, head width, feed-forward, vocabulary, tied
SHAPES = {
    "tiny": (256, 4, 8, 2, 32, 512, 512, True),
    "0.5b": (896, 24, 14, 2, 64, 4864, 151936, True),
    "1b": (2048, 16, 32, 8, 64, 8192, 128256, True),
    "8b": (4096, 32, 32, 8, 128, 14336, 128256, False),
}
GROUP = 64  # weights that share a scale where they are packed


@dataclass
class Sides:
    """`mlx_lm` is None where it cannot read the model."""

    name: str
    ours: Model
    mlx_lm: Any


def loaded(model: str) -> Sides:
    """Both sides of a model on disk."""
    ours, theirs = load(model), None
    try:
        from mlx_lm.utils import load_model

        theirs, _ = load_model(ours.files.folder)
    except FileNotFoundError:  # it reads no npz
        pass
    return Sides(model, ours, theirs)


def made(shape: str, dtype: str = "bfloat16", bits: int | None = None) -> Sides:
    """Both sides of a llama of random weights, packed in so many bits where asked for."""
    from mlx import nn
    from mlx_lm.models.llama import Model as Llama
    from mlx_lm.models.llama import ModelArgs

    config = _config(shape)
    theirs = Llama(ModelArgs.from_dict(config))
    mx.random.seed(0)
    for path, old in _flat(theirs):
        gain = old.ndim == 1
        scale = 1.0 / math.sqrt(old.shape[-1])
        new = mx.ones(old.shape) if gain else mx.random.normal(old.shape, scale=scale)
        theirs.update(tree_unflatten([(path, new.astype(getattr(mx, dtype)))]))
        mx.eval(theirs.parameters())
    if bits:
        config["quantization"] = {"group_size": GROUP, "bits": bits}
        nn.quantize(theirs, GROUP, bits)
    spec = decoder_spec(Config(config, "made"))
    decoder, tensors = Decoder(spec), dict(_flat(theirs))
    quantised = quantisation(config, "made")
    if places := packed_places(tensors, spec, decoder.shapes(), quantised, "made"):
        pack(decoder, places, getattr(mx, dtype))
    weights = arrange(tensors, spec, decoder.shapes(), "made")
    decoder.update(tree_unflatten(list(weights.items())))
    decoder.eval()
    mx.eval(decoder.parameters())
    packed = f", {bits} bits" if bits else ""
    files = find_model("golden/models/tiny-llama")  # for a tokenizer, where one is asked for
    model = Model(files, spec, decoder)
    vars(model)["tokenizer"] = load_tokenizer(files)  # as it is: it has fewer ids than there are
    return Sides(f"llama {shape} {dtype}{packed}", model, theirs)


def _config(shape: str) -> dict[str, Any]:
    width, blocks, heads, kv_heads, head_dim, inner, vocab, tied = SHAPES[shape]
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
    }


def _flat(module: Any) -> list[tuple[str, mx.array]]:
    flat: Any = tree_flatten(module.parameters())
    return flat
