"""config.json as it was written before transformers 5, from what it writes now.

Old and new mean the same to transformers: `same_meaning` asks it, and where it says no, there is no
old spelling of that model.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from ..backends._transformers import import_torch

LAYERED = ("full_attention", "sliding_attention")


def old(config: Mapping[str, Any], also: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_theta` and `rope_scaling` at top level, settings under the family's own names.

    `also` are further keys that old files have; an empty text there takes a key away. None where
    nothing is spelled otherwise, or where bases by kind of layer have no names that are known.
    """
    found = copy.deepcopy(dict(config))
    rope = found.pop("rope_parameters", None) or {}
    if set(rope) == set(LAYERED):
        found["rope_local_base_freq"] = rope["sliding_attention"].get("rope_theta")
        rope = rope["full_attention"]
    elif any(isinstance(value, dict) for value in rope.values()):
        if not also:
            return None
        rope = {}
    if "dtype" in found:
        found["torch_dtype"] = found.pop("dtype")
    rope = dict(rope)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            found[key] = rope.pop(key)
    kind = rope.pop("rope_type", "default")
    if kind != "default":
        found["rope_scaling"] = {"rope_type": kind, **rope}
    for alias, name in _own_names(config["model_type"]).items():
        if name in found:
            found[alias] = found.pop(name)
    for key, value in also.items():
        found.pop(key, None)
        if value != "":
            found[key] = value
    found.pop("transformers_version", None)
    plain = {k: v for k, v in config.items() if k not in ("transformers_version", "dtype")}
    return None if {k: v for k, v in found.items() if k != "torch_dtype"} == plain else found


def same_meaning(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether transformers makes the same configuration of both."""
    return _meaning(one) == _meaning(other)


def _own_names(family: str) -> dict[str, str]:
    """Fields that a class declares under one name and writes under another, common one."""
    _, transformers = import_torch()
    kind = transformers.CONFIG_MAPPING[family]
    declared = {field.name for field in dataclasses.fields(kind)}
    return {alias: name for alias, name in kind.attribute_map.items() if alias in declared}


def _meaning(config: Mapping[str, Any]) -> Any:
    _, transformers = import_torch()
    raw = copy.deepcopy(dict(config))
    try:
        parsed = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw).to_dict()
    except Exception as error:  # as many kinds as there are configurations
        return error
    known = set(parsed)
    for key in ("transformers_version", "dtype", "torch_dtype", "architectures", "rope_scaling"):
        parsed.pop(key, None)
    # What a file says beside the fields of the class is kept, and read by nobody.
    fields = set(transformers.CONFIG_MAPPING[config["model_type"]]().to_dict()) & known
    return {key: value for key, value in parsed.items() if key in fields}
