"""Pack a model's matrices, in the format and under the names of mlx-lm.

Packed are the matrices that mlx-lm packs, those of linear layers, embeddings and experts, where
their rows are whole groups. Routers stay as they are: a rounded one sends tokens to other experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from .architectures import decoder_spec
from .config import Config
from .decoder import Decoder
from .errors import UnsupportedFormat
from .files import ModelFiles
from .weights.arrange import arrange, rows_of
from .weights.experts import together
from .weights.quantised import Packing, quantisation


def quantised_model(
    files: ModelFiles, tensors: Mapping[str, mx.array], how: Packing
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Tensors and configuration of a model once it is packed; the tensors are not computed yet.

    Raises UnsupportedFormat where it is packed already or cannot be, CorruptWeights where tensors
    and configuration do not fit.
    """
    where = str(files.folder / "config.json")
    if quantisation(files.config, where) is not None:
        raise UnsupportedFormat(f"{files.name} is quantised already: name its original")
    spec = decoder_spec(Config(files.config, where))
    decoder = Decoder(spec)
    rows = list(rows_of(spec))
    arrange(tensors, spec, decoder.shapes(), str(files.folder))  # or it is no model
    found = together(tensors, rows)
    if spec.tied_head:
        for row in rows:
            if row.targets == ("head",):
                found.pop(f"{row.source}.weight", None)
    packed = 0
    for row in rows:
        module = row.source.removesuffix(".weight") if row.parameter else row.source
        name = f"{module}.weight"
        if name not in found or not _is_matrix(decoder, row.targets[0]):
            continue
        if row.transpose:
            raise UnsupportedFormat(
                f"tensor {name!r} of {files.name} is stored transposed, and packed rows cannot be "
                f"turned: {spec.model_type} is not quantised here"
            )
        if how.fits(found[name].shape[-1]):
            parts = how.pack(found.pop(name))
            found |= {f"{module}.{part}": array for part, array in parts.items()}
            packed += 1
    if not packed:
        raise UnsupportedFormat(
            f"no matrix of {files.name} has rows of whole groups of {how.group_size}: choose a "
            "smaller --group-size"
        )
    settings = {"quantization": how.settings, "quantization_config": how.settings}
    return found, {**files.config, **settings}


def _is_matrix(decoder: Decoder, path: str) -> bool:
    """Whether the engine's module or parameter at a path is one that is packed."""
    *steps, name = path.split(".")
    place: Any = decoder
    for step in steps:
        place = place[int(step)] if step.isdigit() else place[step]
    part = place.get(name)
    if isinstance(part, mx.array):
        return part.ndim == 3  # of experts
    return isinstance(part, (nn.Linear, nn.Embedding)) and name != "router"
