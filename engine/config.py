"""config.json as any transformers version writes it, read as one normal form.

transformers 4 keeps `rope_theta` and `rope_scaling` at top level, 5 puts both into
`rope_parameters`, nested per layer type where layers differ. `Config.rope` gives the same
`RopeSpec` for either. This module knows spellings; what a family does with the values, and which
defaults it has, stands in its file in `architectures/`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import InvalidConfig, UnsupportedArchitecture
from .spec import RopeSpec

REQUIRED: Any = object()  # in place of a default: the key has to be there
_ROPE_KEYS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor",
    "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    "short_factor", "long_factor",
}  # fmt: skip


class Config:
    """Typed, checked access to the keys of one config.json.

    `where` is the file it came from; every error names it. A key that is absent, or null, takes
    the default; without a default it is an InvalidConfig.
    """

    def __init__(self, raw: Mapping[str, Any], where: str = "config.json") -> None:
        self.raw = dict(raw)
        self.where = where
        self.refused: dict[str, tuple[Any, ...]] = {}  # keys that were asked, what is allowed

    def __contains__(self, key: str) -> bool:
        return self.raw.get(key) is not None

    def integer(self, key: str, default: Any = REQUIRED, minimum: int = 1) -> Any:
        value = self._get(key, default, int)
        if value is not None and value < minimum:
            raise InvalidConfig(f"{key} is {value} in {self.where}: it must be at least {minimum}")
        return value

    def number(self, key: str, default: Any = REQUIRED) -> Any:
        return self._get(key, default, (int, float))

    def positive(self, key: str, default: Any = REQUIRED) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise InvalidConfig(f"{key} is {value} in {self.where}: it must be above 0")
        return value

    def integers(self, key: str, default: Any = REQUIRED) -> Any:
        values = self._get(key, default, list)
        if not all(type(value) is int for value in values):
            raise InvalidConfig(f"{key} is {values!r} in {self.where}: it must be a list of int")
        return values

    def boolean(self, key: str, default: Any = REQUIRED) -> Any:
        return self._get(key, default, bool)

    def text(self, key: str, default: Any = REQUIRED) -> Any:
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
        value, self.refused[key] = self.raw.get(key), allowed
        if value is not None and value not in allowed:
            raise UnsupportedArchitecture(
                f"{key} is {value!r} in {self.where}: supported is "
                f"{' or '.join(map(repr, allowed)) or 'only its absence'}"
            )

    def rotary(self, key: str, default: float) -> float:
        """One more number of the rotary settings, in either spelling."""
        settings = self._get("rope_scaling", {}, dict) or self._get("rope_parameters", {}, dict)
        return Config(settings, f"the rotary settings of {self.where}").number(key, default)

    def rope(
        self,
        head_dim: int,
        *,
        layer_type: str | None = None,
        theta_key: str | None = "rope_theta",
        default_theta: float = 10000.0,
        scaled: bool = True,
        part: float | None = None,
        part_key: str = "partial_rotary_factor",
        pairs: str = "halves",
        types: Mapping[str, str] | None = None,
    ) -> RopeSpec:
        """The rotary embedding of one layer type, in either spelling.

        `theta_key` and `part_key` are the family's top-level spellings of the base and of the share
        of the head width that is rotated; `part` is the default of the latter, None where the
        family rotates whole heads. `theta_key` None and `scaled` False: no top-level base, and no
        top-level `rope_scaling`, applies to this layer type. `types` are names that its checkpoints
        have for a scaling, and what that is called here. Precedence as in transformers 5:
        `rope_scaling`, then `rope_parameters`, then top-level keys, then the default.
        """
        nested = self._get("rope_parameters", {}, dict)
        by_layer = any(isinstance(value, Mapping) for value in nested.values())
        if layer_type is not None and by_layer:
            nested = nested.get(layer_type) or {}
        scaling = self._get("rope_scaling", {}, dict) if scaled else {}
        merged = {**nested, **scaling} if layer_type is not None else dict(scaling or nested)
        kind = str(merged.get("rope_type", merged.get("type", "default")))
        kind = (types or {}).get(kind, kind)
        if unknown := set(merged) - _ROPE_KEYS - {theta_key, part_key}:
            raise UnsupportedArchitecture(
                f"rotary setting {sorted(unknown)[0]!r} in {self.where}: not supported for {kind!r}"
            )
        theta = merged.get("rope_theta") or (
            self.number(theta_key, default_theta) if theta_key else default_theta
        )
        share = merged.get("partial_rotary_factor") or self.number(part_key, part or 1.0)
        if share != 1.0 and part is None:
            raise UnsupportedArchitecture(
                f"{part_key} is {share!r} in {self.where}: the family rotates whole heads"
            )
        for key, value in ((theta_key or "rope_theta", theta), (part_key, share)):
            if not isinstance(value, (int, float)) or value <= 0:
                raise InvalidConfig(f"{key} is {value!r} in {self.where}: it must be above 0")
        longest = self.integer("max_position_embeddings", 2048)
        scale = _Scaling(kind, merged, self.where)
        # As in transformers: the one at top level goes first, but where layer types have their own.
        key = "original_max_position_embeddings"
        before = None if by_layer else self.integer(key, None)
        before = before or scale.positive(key, longest)
        if kind == "dynamic":
            before = longest
        dims = int(head_dim * share)
        rope = RopeSpec(dims, float(theta), pairs, kind, original_length=int(before))
        if kind in ("linear", "dynamic"):
            return replace(rope, factor=scale.positive("factor"))
        if kind == "llama3":
            low = scale.positive("low_freq_factor")
            high = scale.positive("high_freq_factor", above=low)
            return replace(
                rope, factor=scale.positive("factor"), low_freq_factor=low, high_freq_factor=high
            )
        if kind == "yarn":
            factor = scale.positive("factor", longest / before)
            return replace(
                rope,
                factor=factor,
                beta_fast=scale.positive("beta_fast", 32.0),
                beta_slow=scale.positive("beta_slow", 1.0),
                # transformers looks for it outside of the layer types alone.
                truncate=by_layer or merged.get("truncate", True),
                magnitude=scale.positive("attention_factor", scale.yarn_magnitude(factor)),
            )
        if kind == "longrope":
            factor = scale.positive("factor", longest / before)
            magnitude = math.sqrt(1 + math.log(factor) / math.log(before)) if factor > 1 else 1.0
            return replace(
                rope,
                factor=factor,
                short_factors=scale.factors("short_factor", dims // 2),
                long_factors=scale.factors("long_factor", dims // 2),
                magnitude=scale.positive("attention_factor", magnitude),
            )
        return rope  # where a type is unknown, `Rope` says which there are

    def _get(self, key: str, default: Any, kinds: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            if default is REQUIRED:
                raise InvalidConfig(f"{key} is missing in {self.where}: the model cannot be built")
            return default
        wrong_bool = isinstance(value, bool) and kinds is not bool
        if wrong_bool or not isinstance(value, kinds):
            raise InvalidConfig(f"{key} is {value!r} in {self.where}: it has the wrong type")
        return value


@dataclass(frozen=True)
class _Scaling:
    """The settings of one rotary scaling, checked as they are read."""

    kind: str
    settings: Mapping[str, Any]
    where: str

    def positive(self, key: str, default: float | None = None, above: float = 0.0) -> float:
        value = self.settings.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= above:
            raise self._wrong(key, repr(value), f"a number above {above:g}")
        return float(value)

    def factors(self, key: str, count: int) -> tuple[float, ...]:
        """One factor for each pair."""
        values = self.settings.get(key)
        if not isinstance(values, list) or len(values) != count:
            shown = f"{len(values)} numbers" if isinstance(values, list) else repr(values)
            raise self._wrong(key, shown, f"a list of {count} numbers, one for each rotary pair,")
        if not all(type(v) in (int, float) and v > 0 for v in values):
            raise self._wrong(key, repr(values), "a list of numbers above 0")
        return tuple(map(float, values))

    def yarn_magnitude(self, factor: float) -> float:
        """What YaRN's queries and keys are multiplied with. Source: its paper, section 3.4."""
        if self.settings.get("mscale") and self.settings.get("mscale_all_dim"):
            one, all_dims = self.positive("mscale"), self.positive("mscale_all_dim")
            return yarn_mscale(factor, one) / yarn_mscale(factor, all_dims)
        return yarn_mscale(factor)

    def _wrong(self, key: str, shown: str, needed: str) -> InvalidConfig:
        return InvalidConfig(
            f"rotary scaling {self.kind!r} in {self.where} has {key} {shown}: {needed} is needed"
        )


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """How much attention has to be sharpened where positions are stretched by a factor."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
