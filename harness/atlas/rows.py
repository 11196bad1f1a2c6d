"""What the atlas says of one model: a variant of a family, in one spelling of config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..types import ERROR, FAIL, INCONCLUSIVE, PASS

CANNOT_LOAD = "cannot load"  # the candidate refuses it, or cannot run it
OUTCOMES = (PASS, FAIL, CANNOT_LOAD, INCONCLUSIVE, ERROR)
# ERROR: the tiny model cannot be made or the reference cannot run it, so that nothing was judged.

NEW, OLD = "new", "old"  # as transformers 5 writes config.json, and as it was written before


@dataclass(frozen=True)
class Row:
    """One model, judged. `site`, `check`, `ratio`, `diagnosis` and `code` are those of a first
    divergence; `reason` says why there is no verdict."""

    family: str
    variant: str
    spelling: str
    outcome: str
    check: str | None = None
    site: str | None = None
    ratio: float | None = None
    diagnosis: str | None = None
    code: str | None = None
    reason: str | None = None
    parameters: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.family}/{self.variant}/{self.spelling}"

    @property
    def told(self) -> str:
        """What went wrong, in one line; empty where nothing did."""
        if self.outcome == FAIL:
            return f"{self.check}: {self.diagnosis or self.reason or ''}"
        return self.reason or ""

    @property
    def evidence(self) -> str:
        """All that was told of it, for a waiver to be found by."""
        told = (self.outcome, self.check, self.site, self.diagnosis, self.reason, self.code)
        return " | ".join(text for text in told if text)

    def document(self) -> dict[str, Any]:
        return asdict(self)


def rows_of(results: Sequence[Sequence[Mapping[str, Any]]]) -> list[Row]:
    """The rows of all families, in the order of families, variants as they were made."""
    rows = [Row(**row) for result in results for row in result]
    return sorted(rows, key=lambda row: row.family)
