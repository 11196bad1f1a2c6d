"""config.json as any transformers version writes it, read as one normal form.

transformers 4 keeps `rope_theta` and `rope_scaling` at top level, 5 puts both into
`rope_parameters`, nested per layer type where layers differ. `Config.rope` gives the same
`RopeSpec` for either. This module knows spellings; what a family does with the values, and which
defaults it has, stands in its file in `architectures/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import InvalidConfig, UnsupportedArchitecture
from .spec import RopeSpec

_REQUIRED = object()


class Config:
    """Typed, checked access to the keys of one config.json.

    `where` is the file it came from; every error names it. A key that is absent, or null, takes
    the default; without a default it is an InvalidConfig.
    """

    def __init__(self, raw: Mapping[str, Any], where: str = "config.json") -> None:
        self.raw = dict(raw)
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def integer(self, key: str, default: Any = _REQUIRED, minimum: int = 1) -> Any:
        value = self._get(key, default, int)
        if value is not None and value < minimum:
            raise InvalidConfig(f"{key} is {value} in {self.where}: it must be at least {minimum}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, default, (int, float))

    def integers(self, key: str, default: Any = _REQUIRED) -> Any:
        values = self._get(key, default, list)
        if not all(type(value) is int for value in values):
            raise InvalidConfig(f"{key} is {values!r} in {self.where}: it must be a list of int")
        return values

    def boolean(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, default, bool)

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        return self._get(key, default, str)

    def layer_types(self, count: int, default: list[str]) -> list[str]:
        """One of "full_attention" and "sliding_attention" for each of `count` blocks."""
        kinds = self._get("layer_types", default, list)
        if len(kinds) < count:
            raise InvalidConfig(
                f"layer_types has {len(kinds)} entries in {self.where}: "
                f"num_hidden_layers is {count}"
            )
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise UnsupportedArchitecture(
                    f"layer type {kind!r} in {self.where}: only full_attention and "
                    "sliding_attention are supported"
                )
        return kinds[:count]

    def refuse(self, key: str, *allowed: Any) -> None:
        """Raise UnsupportedArchitecture when `key` asks for something no field stands for."""
        value = self.raw.get(key)
        if value is not None and value not in allowed:
            raise UnsupportedArchitecture(
                f"{key} is {value!r} in {self.where}: supported is "
                f"{' or '.join(map(repr, allowed)) or 'only its absence'}"
            )

    def rope(
        self,
        head_dim: int,
        *,
        layer_type: str | None = None,
        theta_key: str = "rope_theta",
        default_theta: float = 10000.0,
        scaled: bool = True,
        partial: bool = False,
    ) -> RopeSpec:
        """The rotary embedding of one layer type, in either spelling.

        `theta_key` is the family's top-level spelling of the base; `scaled` says whether a
        top-level `rope_scaling` applies to this layer type, `partial` whether the family rotates a
        part of the head width at all. Precedence as in transformers 5:
        `rope_scaling`, then `rope_parameters`, then top-level keys, then the default.
        """
        nested = self._get("rope_parameters", {}, dict)
        if layer_type is not None and any(isinstance(v, Mapping) for v in nested.values()):
            nested = nested.get(layer_type) or {}
        scaling = self._get("rope_scaling", {}, dict) if scaled else {}
        merged = {**nested, **scaling} if layer_type is not None else dict(scaling or nested)
        kind = merged.get("rope_type", merged.get("type", "default"))
        theta = merged.get("rope_theta") or self.number(theta_key, default_theta)
        part = merged.get("partial_rotary_factor") or self.number("partial_rotary_factor", 1.0)
        if part != 1.0 and not partial:
            raise UnsupportedArchitecture(
                f"partial_rotary_factor is {part!r} in {self.where}: the family rotates whole heads"
            )

        length = self.integer("max_position_embeddings", 2048)
        if kind != "dynamic":
            length = (
                self.raw.get("original_max_position_embeddings")
                or merged.get("original_max_position_embeddings")
                or length
            )
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"}
        known |= {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
        if unknown := set(merged) - known:
            raise UnsupportedArchitecture(
                f"rotary setting {sorted(unknown)[0]!r} in {self.where}: not supported for {kind!r}"
            )
        for key, value in (("rope_theta", theta), ("partial_rotary_factor", part)):
            if not isinstance(value, (int, float)) or value <= 0:
                raise InvalidConfig(f"{key} is {value!r} in {self.where}: it must be above 0")
        needed = {"linear": ("factor",), "dynamic": ("factor",)}.get(kind, ())
        if kind == "llama3":
            needed = ("factor", "low_freq_factor", "high_freq_factor")
        for key in needed:
            value = merged.get(key)
            if not isinstance(value, (int, float)) or value <= 0:
                raise InvalidConfig(
                    f"rotary scaling {kind!r} in {self.where} has {key} {value!r}: "
                    "a number above 0 is needed"
                )
        return RopeSpec(
            dims=int(head_dim * part),
            theta=float(theta),
            type=kind,
            factor=float(merged.get("factor") or 1.0),
            low_freq_factor=float(merged.get("low_freq_factor") or 1.0),
            high_freq_factor=float(merged.get("high_freq_factor") or 4.0),
            original_length=int(length),
        )

    def _get(self, key: str, default: Any, kinds: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            if default is _REQUIRED:
                raise InvalidConfig(f"{key} is missing in {self.where}: the model cannot be built")
            return default
        wrong_bool = isinstance(value, bool) and kinds is not bool
        if wrong_bool or not isinstance(value, kinds):
            raise InvalidConfig(f"{key} is {value!r} in {self.where}: it has the wrong type")
        return value
