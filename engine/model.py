"""A model that is ready to run: its files, its spec, its decoder with weights, its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
from mlx.utils import tree_unflatten

from .architectures import decoder_spec
from .config import Config
from .decoder import Decoder
from .errors import BackendUnavailable
from .files import ModelFiles, find_model
from .layers.packed import pack
from .sharding import Share, share_of
from .spec import DecoderSpec
from .weights import read_weights
from .weights.arrange import arrange
from .weights.parts import Parts
from .weights.quantised import packed_places, quantisation

if TYPE_CHECKING:
    from .ranks import Ranks
    from .tokenizer import Tokenizer

# transformers keeps these in float32 in a model of any dtype: they decide which experts are chosen.
KEPT = ("selection_bias",)
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@dataclass
class Model:
    """What `load` returns. `decoder` maps token ids (B, T) to logits (B, T, V).

    `spec` is the whole model's; of one that runs over several ranks, `decoder` has the `share` of
    this one.
    """

    files: ModelFiles
    spec: DecoderSpec
    decoder: Decoder
    share: Share | None = None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read on first use; raises TokenizerMismatch when it does not fit the embedding."""
        from .tokenizer import check_fits, load_tokenizer

        tokenizer = load_tokenizer(self.files)
        check_fits(tokenizer.max_id, self.spec.vocab, self.files.folder)
        return tokenizer


def load(
    model: str | Path | ModelFiles,
    *,
    dtype: str | None = None,
    revision: str | None = None,
    ranks: Ranks | None = None,
) -> Model:
    """Find, read and build a model; arrays stay lazy until they are used.

    `dtype` casts floating-point weights ("float32", "bfloat16", "float16"), those in KEPT apart;
    None keeps what is stored. With `ranks`, the share of this rank alone is read, at once. Raises
    the errors of `errors.py`; nothing else escapes for a model that is at fault.
    """
    files = model if isinstance(model, ModelFiles) else find_model(model, revision)
    where = str(files.folder / "config.json")
    spec = decoder_spec(Config(files.config, where))
    decoder = Decoder(spec)
    source = str(files.weights[0] if len(files.weights) == 1 else files.folder)
    read, quantised = read_weights(files), quantisation(files.config, where)
    if places := packed_places(read, spec, decoder.shapes(), quantised, source):
        pack(decoder, places, _dtype(read, dtype))
    share = parts = None
    shapes = decoder.shapes()
    if ranks is not None:
        share = share_of(spec, ranks.rank, ranks.size, places)
        parts = Parts(share, files, read)
        decoder = Decoder(share.spec)
        pack(decoder, places, _dtype(read, dtype))
    tensors = arrange(read, spec, shapes, source, parts)
    if dtype is not None:
        kept = {path: a for path, a in tensors.items() if path.rpartition(".")[2] in KEPT}
        tensors = {path: cast(array, dtype) for path, array in tensors.items()} | kept
    decoder.update(tree_unflatten(list(tensors.items())))
    decoder.eval()
    if ranks is not None and share is not None:
        from .layers.ranked import connect

        mx.eval(decoder.parameters())
        connect(decoder, share, ranks)
        ranks.agree("model", f"{spec} {dtype} {places}")
    return Model(files, spec, decoder, share)


def cast(array: mx.array, dtype: str) -> mx.array:
    """`array` in `dtype` where it is floating-point, else as it is."""
    if dtype not in DTYPES:
        raise BackendUnavailable(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return array.astype(DTYPES[dtype]) if mx.issubdtype(array.dtype, mx.floating) else array


def _dtype(tensors: Mapping[str, mx.array], dtype: str | None) -> mx.Dtype:
    """What a model is computed in: as asked, or as its floating-point tensors are stored."""
    if dtype in DTYPES:
        return DTYPES[dtype]
    floating = (a.dtype for a in tensors.values() if mx.issubdtype(a.dtype, mx.floating))
    return next(floating, mx.float32)
