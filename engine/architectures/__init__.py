"""Families the engine knows: one file per `model_type`, found by scanning this folder.

Each file has `spec(config: Config) -> DecoderSpec` and `TINY`, transformers configurations small
enough for a test and built to expose faults. Files whose names start with an underscore are shared
parts. Nothing is registered by hand.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

from ..config import Config
from ..errors import InvalidConfig, UnsupportedArchitecture
from ..spec import DecoderSpec, MoESpec


def supported() -> list[str]:
    """The model types that have a file here, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def architecture(model_type: str) -> ModuleType:
    """The file of one family; UnsupportedArchitecture lists the known ones, nearest first."""
    known = supported()
    if model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=len(known), cutoff=0.4)
        ordered = near + [name for name in known if name not in near]
        raise UnsupportedArchitecture(
            f"model_type {model_type!r} is not supported: the engine has {', '.join(ordered)}"
        )
    return importlib.import_module(f"{__name__}.{model_type}")


def decoder_spec(config: Config) -> DecoderSpec:
    """What the model of this config.json is, as data."""
    model_type = config.text("model_type")
    try:
        spec = architecture(model_type).spec(config)
    except UnsupportedArchitecture as error:
        if config.where in str(error):
            raise
        raise UnsupportedArchitecture(f"{error} ({config.where})") from None
    _check(spec, config.where)
    return spec


def _check(spec: DecoderSpec, where: str) -> None:
    """Raise InvalidConfig for numbers no decoder can be built from."""
    for block in spec.blocks:
        attention, rope = block.attention, block.attention.rope
        wrong = {
            f"num_key_value_heads is {attention.kv_heads}": attention.heads % attention.kv_heads,
            f"head width is {attention.head_dim}": attention.head_dim < 1,
            f"norm epsilon is {block.norm.eps}": block.norm.eps < 0,
            f"rotary width is {rope and rope.dims}": rope and (rope.dims < 2 or rope.dims % 2),
        }
        for what, is_wrong in wrong.items():
            if is_wrong:
                raise InvalidConfig(
                    f"{what} in {where}: {attention.heads} heads of width {attention.head_dim} "
                    "cannot be built with it"
                )
        if isinstance(block.mlp, MoESpec):
            _check_experts(block.mlp, where)


def _check_experts(moe: MoESpec, where: str) -> None:
    size, rest = divmod(moe.experts, moe.groups)
    if rest or moe.top_groups > moe.groups or (moe.groups > 1 and size < moe.group_best):
        raise InvalidConfig(
            f"n_group is {moe.groups} and topk_group {moe.top_groups} in {where}: {moe.experts} "
            "experts cannot be divided so"
        )
    if moe.top_k > size * moe.top_groups:
        raise InvalidConfig(
            f"num_experts_per_tok is {moe.top_k} in {where}: there are {size * moe.top_groups} "
            "experts to choose from"
        )
