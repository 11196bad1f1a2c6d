"""Known divergences of a candidate, each reviewed: `waivers.toml`.

An entry names families, the variants and spellings it is about, the version of the candidate, what
has to be seen (`match`, a regular expression found in what a row tells), and why it is so. A row
that fails and has an entry is waived. A family that an entry names and that shows nothing of it is
stale, and fails the command, so that the file never says what is no longer true.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..environment import version
from ..errors import BadOption
from ..types import PASS
from .rows import Row

FILE = Path(__file__).with_name("waivers.toml")


@dataclass(frozen=True)
class Waiver:
    """`variants` and `spellings` are patterns like those of files, one of which fits; `where` is
    file and function in the candidate's sources. `confirmed` is what was seen when the stated cause
    was taken away, and nothing else: that it is the whole reason."""

    title: str
    candidate: str
    version: str
    families: tuple[str, ...]
    match: str
    reason: str
    where: str
    variants: tuple[str, ...] = ("*",)
    spellings: tuple[str, ...] = ("*",)
    confirmed: str = ""

    def fits(self, row: Row) -> bool:
        return (
            row.outcome != PASS
            and row.family in self.families
            and any(fnmatchcase(row.variant, pattern) for pattern in self.variants)
            and any(fnmatchcase(row.spelling, pattern) for pattern in self.spellings)
            and re.search(self.match, row.evidence) is not None
        )


@dataclass(frozen=True)
class Waivers:
    """Those in force for a candidate, and how many are for other versions of it."""

    entries: tuple[Waiver, ...] = ()
    elsewhere: int = 0
    _by_row: dict[str, Waiver | None] = field(default_factory=dict)

    def of(self, row: Row) -> Waiver | None:
        """The first entry that fits a row."""
        if row.name not in self._by_row:
            self._by_row[row.name] = next((w for w in self.entries if w.fits(row)), None)
        return self._by_row[row.name]

    def stale(self, rows: Sequence[Row]) -> list[tuple[Waiver, str]]:
        """Entries with the families that they name, that were judged, and that show nothing."""
        used = {(id(self.of(row)), row.family) for row in rows}
        judged = {row.family for row in rows}
        return [
            (waiver, family)
            for waiver in self.entries
            for family in waiver.families
            if family in judged and (id(waiver), family) not in used
        ]


def read_waivers(candidate: str, path: Path = FILE, installed: str | None = None) -> Waivers:
    """The entries for a candidate at the version that is installed. Raises BadOption for an entry
    that lacks something."""
    installed = installed or version(candidate) or ""
    known = {f.name: f for f in fields(Waiver)}
    mine, others = [], 0
    tables = tomllib.loads(path.read_text(encoding="utf-8")).get("waiver", [])
    for number, table in enumerate(tables, 1):
        place = f"{path}, waiver {number} ({table.get('title', 'no title')})"
        if unknown := sorted(set(table) - set(known)):
            raise BadOption(f"{place}: {unknown[0]!r} is not one of {', '.join(known)}")
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in table.items()
        }
        try:
            waiver = Waiver(**given)
            re.compile(waiver.match)
        except (TypeError, re.error) as error:
            raise BadOption(f"{place}: {error}") from None
        if waiver.candidate != candidate:
            continue
        if waiver.version == installed:
            mine.append(waiver)
        else:
            others += 1
    return Waivers(tuple(mine), others)
