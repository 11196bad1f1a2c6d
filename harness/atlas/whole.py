"""The atlas as one piece of data: families, their rows, and what is known of those that fail."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..types import PASS
from .families import Family
from .rows import Row
from .variants import VARIANTS
from .waivers import Waiver, Waivers


@dataclass(frozen=True)
class Atlas:
    candidate: str
    families: Sequence[Family]
    rows: Sequence[Row]
    waivers: Waivers
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def attempted(self) -> list[str]:
        return [family.name for family in self.families if family.left_out is None]

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Families that were not attempted, by the reason."""
        found: dict[str, list[str]] = defaultdict(list)
        for family in self.families:
            if family.left_out is not None:
                found[family.left_out].append(family.name)
        return dict(found)

    @property
    def variants(self) -> list[str]:
        """Those that any family has, in the order they are defined."""
        there = {row.variant for row in self.rows}
        return [*(v for v in VARIANTS if v in there), *sorted(there - set(VARIANTS))]

    def of(self, family: str, variant: str | None = None) -> list[Row]:
        return [r for r in self.rows if r.family == family and variant in (None, r.variant)]

    def rows_of(self, waiver: Waiver) -> list[Row]:
        return [row for row in self.rows if self.waivers.of(row) is waiver]

    def number(self, row: Row) -> int | None:
        """The finding that a row is an instance of, counted from 1."""
        waiver = self.waivers.of(row)
        return None if waiver is None else self.waivers.entries.index(waiver) + 1

    @property
    def failures(self) -> list[Row]:
        """Rows that do not pass and are not waived."""
        return [r for r in self.rows if r.outcome != PASS and self.waivers.of(r) is None]

    @property
    def stale(self) -> list[tuple[Waiver, str]]:
        return self.waivers.stale(self.rows)

    @property
    def exit_status(self) -> int:
        return int(bool(self.failures or self.stale))

    def passing(self, spelling: str) -> list[str]:
        """Families that pass in every variant, in this spelling where they have it."""
        return [family for family in self.attempted if self._passes(family, spelling)]

    def _passes(self, family: str, spelling: str) -> bool:
        rows = self.of(family)
        there = {row.variant for row in rows if row.spelling == spelling}
        asked = [r for r in rows if r.spelling == spelling or r.variant not in there]
        return bool(rows) and all(row.outcome == PASS for row in asked)
