"""What no rule can tell of a family, as data: `recipes.toml`, a few reviewed lines each.

A table named after a family may hold `settings` (for its configuration class, over those of the
rule), `around` (for that of a family that does more than text, beside its text), `also` (keys of
config.json files on the Hub that transformers does not write, for the old spelling; "null" is
JSON's), `rotary` (old names of rotary settings, see `spelling.ROTARY`), `names` and `stacked` (how
tensors are called on the Hub where transformers saves them otherwise, see `names.py`, for the old
spelling), `factors` (rotary settings of the variant longrope, lists as long as heads are wide),
`without` (variants that mean nothing there, or "old" for a family whose config.json is as old as
transformers 5), `left_out` (why nothing is attempted), and `why`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import BadOption

FILE = Path(__file__).with_name("recipes.toml")


@dataclass(frozen=True)
class Recipe:
    why: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    around: Mapping[str, Any] = field(default_factory=dict)
    also: Mapping[str, Any] = field(default_factory=dict)
    rotary: Mapping[str, str] = field(default_factory=dict)
    names: tuple[tuple[str, str], ...] = ()
    stacked: bool = False
    factors: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    left_out: str | None = None

    @property
    def renamed(self) -> bool:
        return bool(self.names) or self.stacked

    @property
    def digest(self) -> str:
        """Of what results depend on."""
        known = {name: value for name, value in asdict(self).items() if value and name != "why"}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


@cache
def read_recipes(path: Path = FILE) -> dict[str, Recipe]:
    """Every recipe by its family. Raises BadOption, naming the entry, for one that says nothing."""
    known = {f.name for f in fields(Recipe)}
    found = {}
    for family, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if unknown := sorted(set(table) - known):
            raise BadOption(f"{path}, [{family}]: {unknown[0]!r} is not one of {', '.join(known)}")
        if not table.get("why") and not table.get("left_out"):
            raise BadOption(f"{path}, [{family}]: say why")
        lists = {
            "names": tuple((pattern, name) for pattern, name in table.get("names", ())),
            "without": tuple(table.get("without", ())),
        }
        found[family] = Recipe(**{**table, **lists})
    return found


def recipe_of(family: str) -> Recipe:
    return read_recipes().get(family, Recipe())
