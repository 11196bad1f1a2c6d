"""Quantised checkpoints as mlx-lm writes them: what config.json says of them, and their matrices.

A packed matrix is NAME.weight, whole numbers in words of 32 bits, with NAME.scales and, in mode
"affine", NAME.biases beside it: one of each for every group of numbers in a row. Which modules are
packed the tensors say; how, `quantization` in config.json: settings for all, and under a module's
path others for that one, or false where it is not packed. Values are those that `mx.dequantize`
defines. No family is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..errors import CorruptWeights, InvalidConfig, UnsupportedFormat
from ..spec import DecoderSpec
from .arrange import Shapes, rows_of

# Group sizes and bits of each mode, its defaults first: the table in MLX's `quantize`.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), (4, 1, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "mxfp8": ((32,), (8,)),
    "nvfp4": ((16,), (4,)),
}
PARTS = ("weight", "scales", "biases")
_SETTINGS = ("group_size", "bits", "mode")


@dataclass(frozen=True)
class Packing:
    """How one matrix is packed: `group_size` numbers of `bits` bits share a scale."""

    group_size: int
    bits: int
    mode: str = "affine"

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors of a matrix, by their last names."""
        return PARTS if self.mode == "affine" else PARTS[:2]

    @property
    def settings(self) -> dict[str, Any]:
        """As they stand in config.json."""
        return {key: getattr(self, key) for key in _SETTINGS}

    def fits(self, width: int) -> bool:
        """Whether rows of this width are whole groups."""
        return width > 0 and width % self.group_size == 0

    def pack(self, matrix: mx.array) -> dict[str, mx.array]:
        """The parts of a matrix (..., out, in)."""
        return dict(zip(self.parts, mx.quantize(matrix, **self.settings), strict=True))

    def unpack(self, parts: Mapping[str, mx.array]) -> mx.array:
        """The matrix (..., out, in) in float32, as exact as float32 holds it."""
        scales, biases = parts["scales"], parts.get("biases")
        if self.mode == "affine":
            assert biases is not None
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.dequantize(parts["weight"], scales, biases, **self.settings, dtype=mx.float32)


@dataclass(frozen=True)
class Quantisation:
    """What config.json says: settings for all modules, and by path for single ones.

    None in `overrides` is a module that is not packed.
    """

    default: Packing
    overrides: Mapping[str, Packing | None]
    where: str

    def of(self, module: str) -> Packing:
        """How a module that has scales is packed; CorruptWeights where it should not be."""
        found = self.overrides.get(module, self.default)
        if found is None:
            raise CorruptWeights(
                f"tensor '{module}.scales' belongs to a module that {self.where} says is not "
                f"quantised ({module!r}: false): correct either"
            )
        return found


def quantisation(config: Mapping[str, Any], where: str) -> Quantisation | None:
    """Read `quantization`, which mlx-lm writes as `quantization_config` too; None without it.

    Raises UnsupportedFormat for what MLX has no mode for, InvalidConfig for what cannot be.
    """
    key = next((k for k in ("quantization", "quantization_config") if config.get(k)), None)
    if key is None:
        return None
    raw = config[key]
    if not isinstance(raw, Mapping):
        raise InvalidConfig(f"{key} is {raw!r} in {where}: it must be an object")
    if raw.get("quant_method") == "mxfp4":
        return None  # `mxfp4.unpacked` makes plain matrices of its blocks
    if "bits" not in raw or raw.get("quant_method"):
        method = raw.get("quant_method", "unknown")
        raise UnsupportedFormat(
            f"{key} in {where} is of method {method!r}: the engine reads what mlx_lm.convert and "
            "engine convert --quantize write; convert the original with one of them"
        )
    default = packing(raw, f"{key} of {where}")
    overrides: dict[str, Packing | None] = {}
    for path, value in raw.items():
        if isinstance(value, Mapping):
            overrides[path] = packing(value, f"{key} {path!r} of {where}")
        elif value is False:
            overrides[path] = None
        elif value is True:
            overrides[path] = default
    return Quantisation(default, overrides, where)


def packing(raw: Mapping[str, Any], where: str) -> Packing:
    """Settings as MLX reads them: what is absent is the mode's default, "affine" the mode's.

    A module's own settings take nothing from those for all, as in MLX.
    """
    mode = raw.get("mode") or "affine"
    if mode not in MODES:
        raise UnsupportedFormat(f"{where}: mode is {mode!r}, and there are {', '.join(MODES)}")
    if raw.get("global_scale"):
        raise UnsupportedFormat(
            f"{where}: global_scale is {raw['global_scale']!r}, which the engine does not have: "
            "convert the model without it"
        )
    found = {}
    for key, known in zip(_SETTINGS, MODES[mode], strict=False):
        value = raw.get(key)
        value = known[0] if value is None else value
        if type(value) is not int or value not in known:
            raise UnsupportedFormat(
                f"{where}: {key} is {value!r}, and {mode} has {', '.join(map(str, sorted(known)))}"
            )
        found[key] = value
    return Packing(**found, mode=mode)


def packed_modules(tensors: Mapping[str, mx.array]) -> list[str]:
    """Paths of the modules whose matrix is packed."""
    ending = ".scales"
    return [name.removesuffix(ending) for name in tensors if name.endswith(ending)]


def packed_places(
    tensors: Mapping[str, mx.array],
    spec: DecoderSpec,
    shapes: Shapes,
    quantised: Quantisation | None,
    where: str,
) -> dict[str, Packing]:
    """Engine modules whose matrix is packed in a checkpoint: path -> how.

    `shapes` are the plain decoder's parameters. Raises CorruptWeights, and UnsupportedFormat for a
    matrix that cannot be taken apart while it is packed.
    """
    packed, places = set(packed_modules(tensors)), {}
    for row in rows_of(spec):
        module = row.source.replace("{e}", "0")
        module = module.removesuffix(".weight") if row.parameter else module
        if module not in packed:
            continue
        how = settings_of(module, tensors, quantised, where)
        if row.transpose:
            raise UnsupportedFormat(
                f"tensor '{module}.weight' in {where} is packed, and the engine needs it "
                f"transposed: use the {spec.model_type} that it was made from"
            )
        for target in row.targets:
            path = target if row.parameter else f"{target}.weight"
            if path not in shapes:
                continue
            width = shapes[path][-1]
            if len(shapes[path]) < 2 or not how.fits(width):
                raise CorruptWeights(
                    f"tensor '{module}.weight' in {where} is packed in groups of {how.group_size}, "
                    f"and its shape is {shapes[path]}: config.json and weights are not of the same "
                    "model"
                )
            places[target] = how
    return places


def dequantised(
    tensors: Mapping[str, mx.array],
    quantised: Quantisation | None,
    where: str,
    dtype: mx.Dtype | None = None,
) -> dict[str, mx.array]:
    """The same checkpoint with every packed matrix put back as NAME.weight, float32, unread.

    `dtype` is what scales and biases are rounded to first, as they are in a model of that dtype.
    """
    plain = dict(tensors)
    for module in packed_modules(tensors):
        how = settings_of(module, tensors, quantised, where)
        parts = {part: plain.pop(f"{module}.{part}") for part in how.parts}
        if dtype is not None and how.mode == "affine":
            parts = {k: v if k == "weight" else v.astype(dtype) for k, v in parts.items()}
        plain[f"{module}.weight"] = how.unpack(parts)
    return plain


def settings_of(
    module: str, tensors: Mapping[str, mx.array], quantised: Quantisation | None, where: str
) -> Packing:
    """How a module's matrix is packed; CorruptWeights unless its tensors are so."""
    if quantised is None:
        raise CorruptWeights(
            f"tensor '{module}.scales' in {where} belongs to a quantised matrix, and config.json "
            "has no 'quantization': fetch config.json again"
        )
    how = quantised.of(module)
    for part in how.parts:
        if f"{module}.{part}" not in tensors:
            raise CorruptWeights(
                f"tensor '{module}.{part}' is missing from {where}: mode {how.mode!r} needs it; "
                "fetch the weights again, or correct config.json"
            )
    weight, scales = tensors[f"{module}.weight"], tensors[f"{module}.scales"]
    if how.mode == "affine":
        right = mx.issubdtype(scales.dtype, mx.floating)
    else:
        right = scales.dtype == mx.uint8
    width = scales.shape[-1] * how.group_size if scales.ndim > 1 else 0
    shape = (*scales.shape[:-1], width * how.bits // 32)
    if weight.dtype != mx.uint32 or tuple(weight.shape) != shape or not right:
        told = f"{weight.dtype} {tuple(weight.shape)} with scales {scales.dtype} {scales.shape}"
        raise CorruptWeights(
            f"tensor '{module}.weight' in {where} is {told.replace('mlx.core.', '')}: that is not "
            f"{how.bits} bits in groups of {how.group_size}, mode {how.mode!r}, as "
            f"{quantised.where} says"
        )
    return how
