"""config.json as it was written before transformers 5, from what it writes now.

Old and new mean the same to transformers: `same_meaning` asks it, and where it says no, there is no
old spelling of that model.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..backends._transformers import import_torch, parsed
from .recipes import Recipe

ROTARY = {
    "rope_theta": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "full_attention.rope_theta": "rope_theta",
    "sliding_attention.rope_theta": "rope_local_base_freq",
}


def old(config: Mapping[str, Any], recipe: Recipe) -> dict[str, Any] | None:
    """Rotary settings at top level; None where nothing is spelled otherwise, or where a setting
    had no name that is known. Where tensors have other names alone, config.json is the same.

    ROTARY and the recipe say what settings were called. Of two names that a configuration class
    has for one setting, files had either: both are written.
    """
    if "old" in recipe.without:
        return dict(config) if recipe.renamed else None
    if "text_config" in config:
        text = old(config["text_config"], replace(recipe, also={}))
        return None if text is None else {**config, "text_config": text, **recipe.also}
    if not (config.get("rope_parameters") or recipe.also or recipe.renamed):
        return None
    found = copy.deepcopy(dict(config))
    rope = found.pop("rope_parameters", None) or {}
    layered = any(isinstance(value, dict) for value in rope.values())
    names = {**ROTARY, **recipe.rotary}
    for where, name in names.items():
        part, _, key = where.rpartition(".")
        if bool(part) == layered and key in (settings := rope.get(part, {}) if part else rope):
            found[name] = settings.pop(key)
    scaling = rope.get("full_attention", {}) if layered else rope
    for part in rope.values() if layered else ():
        if part is not scaling and set(part) - {"rope_type"}:
            return None
    kind = scaling.pop("rope_type", None)
    if kind is not None and "rope_parameters" not in recipe.also:
        both = {"type": kind, "rope_type": kind, **scaling}
        found["rope_scaling"] = None if kind == "default" else both
    for alias, name in _class(config["model_type"]).attribute_map.items():
        if name in found:
            found.setdefault(alias, found[name])
    found.update({k: None if value == "null" else value for k, value in recipe.also.items()})
    for key in ("dtype", "transformers_version"):
        found.pop(key, None)
    if "dtype" in config:
        found["torch_dtype"] = config["dtype"]
    known = ("dtype", "torch_dtype", "transformers_version")
    same = _without(found, known) == _without(config, known)
    return None if same and not recipe.renamed else found


def same_meaning(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether transformers makes the same configuration of both."""
    return _meaning(one) == _meaning(other)


def _class(family: str) -> Any:
    _, transformers = import_torch()
    return transformers.CONFIG_MAPPING[family]


def _without(config: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def _meaning(config: Mapping[str, Any]) -> Any:
    try:
        known = parsed(config).to_dict()
        # What a file says beside the fields of the class is kept, and read by nobody.
        fields = set(_class(config["model_type"])().to_dict())
    except Exception as error:  # as many kinds as there are configurations
        return error
    for part in (known, known.get("text_config", {})):
        for key in ("rope_scaling", "torch_dtype"):
            part.pop(key, None)
        for rope in _rotary(part):
            rope.pop("type", None)  # the oldest name of rope_type
    said = {"transformers_version", "dtype", "torch_dtype", "architectures", "rope_scaling"}
    return {key: value for key, value in known.items() if key in fields - said}


def _rotary(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of rotary settings, one or one for every kind of layer."""
    rope = config.get("rope_parameters") or {}
    return [part for part in rope.values() if isinstance(part, dict)] or [rope]
