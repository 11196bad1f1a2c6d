"""A model's tensors as its original has them: matrices unpacked, experts one by one.

What compares a model with other programs reads it here; the engine itself runs what is stored.
"""

from __future__ import annotations

import mlx.core as mx

from ..architectures import decoder_spec
from ..config import Config
from ..errors import InvalidConfig, UnsupportedArchitecture
from ..files import ModelFiles
from ..model import DTYPES
from . import read_weights, shapes_of
from .arrange import rows_of
from .experts import one_by_one
from .quantised import dequantised, quantisation


def plain_weights(files: ModelFiles, dtype: str | None = None) -> dict[str, mx.array]:
    """Every tensor by its name in the original, unread; unpacked ones are float32.

    `dtype` is that of the model they are compared with, by its name: scales are rounded to it, as
    they are there. The experts of a family that the engine does not know stay as they lie.
    """
    where = str(files.folder / "config.json")
    quantised = quantisation(files.config, where)
    rounded = DTYPES[dtype] if dtype else None
    tensors = dequantised(read_weights(files), quantised, str(files.folder), rounded)
    try:
        spec = decoder_spec(Config(files.config, where))
    except (InvalidConfig, UnsupportedArchitecture):
        return tensors
    return one_by_one(tensors, list(rows_of(spec)))


def as_original(files: ModelFiles) -> bool:
    """Whether the files hold the original's tensors already, under its names."""
    return set(shapes_of(files.weights)) == set(plain_weights(files))
