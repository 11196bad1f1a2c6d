"""The limits of a device class, as measured by `harness calibrate`: one JSON file per class.

Files that come with the package stand in `harness/tables/`; those made on this machine in
`~/.mlx-parity/limits` (or the folder that MLX_PARITY_LIMITS names), and win. This module reads and
writes; `policy.py` says what the numbers mean, `calibration.py` measures them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.whole import write_whole

from .errors import BadOption
from .files import json_with_rows

SCHEMA = "harness.limits/1"
FALLBACK = "cpu-x86_64"  # the class whose table stands in where there is none


@dataclass(frozen=True)
class Row:
    """What harmless runs do by one measure, at one dtype, on probes of one kind.

    `limit` bounds the ratio; `scatter` is the standard deviation of the log-ratio between prompts;
    `runs` is how many benign runs stand behind them, and `benign` the largest score of those.
    """

    limit: float
    scatter: float
    runs: int
    benign: float


@dataclass(frozen=True)
class Limits:
    """The table of one device class.

    `low[dtype]` is the smallest mean ratio of a benign run: a candidate far below it does not
    compute at that dtype.
    """

    device_class: str
    source: str
    rows: Mapping[tuple[str, str, str], Row]
    low: Mapping[str, float]
    calibrated: bool = True  # False where another class's table stands in
    longest: int = 0  # terms of the model's longest products
    wider: float = 1.0  # because of those, by `products.py`

    def row(self, measure: str, dtype: str, kind: str) -> Row:
        """The row of a kind of probe; for one never measured, the widest of its measure."""
        found = self.rows.get((measure, dtype, kind))
        if found is None:
            rows = [r for (m, d, _), r in self.rows.items() if (m, d) == (measure, dtype)]
            widest = max(rows, key=lambda row: row.limit)
            scatter, runs = max(r.scatter for r in rows), min(r.runs for r in rows)
            found = Row(widest.limit, scatter, runs, widest.benign)
        return replace(found, limit=found.limit * self.wider)

    def widened(self, longest: int, wider: float) -> Limits:
        """The same limits for a model whose products are so long, `wider` times as wide."""
        return replace(self, longest=longest, wider=max(1.0, wider))

    @property
    def runs(self) -> int:
        """Benign runs behind the least measured row."""
        return min(row.runs for row in self.rows.values())

    def describe(self) -> dict[str, Any]:
        """For reports: which table, how many runs, and which share of benign runs it bounds."""
        share = bounded_share(self.runs)
        return {
            "device_class": self.device_class,
            "source": self.source,
            "runs": self.runs,
            "share": share,
            "confidence": CONFIDENCE,
            "calibrated": self.calibrated and share is not None,
            "longest_product": self.longest,
            "wider": self.wider,
        }


CONFIDENCE = 0.95
SHARES = (0.99, 0.95)


def bounded_share(runs: int) -> float | None:
    """The share of all benign runs that the largest of `runs` scores bounds at 95 % confidence.

    Wilks: the largest of n bounds a share g with confidence 1 - g^n. None below 59 runs.
    """
    return next((g for g in SHARES if 1 - g**runs >= CONFIDENCE), None)


def find_limits(device_class: str) -> Limits:
    """The table of a class: made here, shipped, or the fallback's."""
    shipped = Path(__file__).parent / "tables"
    for folder in (own_folder(), shipped):
        path = folder / f"{device_class}.json"
        if path.exists():
            return read_limits(path)
    stand_in = read_limits(shipped / f"{FALLBACK}.json")
    return Limits(device_class, stand_in.source, stand_in.rows, stand_in.low, calibrated=False)


def own_folder() -> Path:
    """Where `harness calibrate` writes."""
    named = os.environ.get("MLX_PARITY_LIMITS")
    return Path(named) if named else Path.home() / ".mlx-parity" / "limits"


def read_limits(path: Path) -> Limits:
    """Read a table. Raises BadOption for one that is not whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}, not {SCHEMA!r}")
        rows = {
            (r["measure"], r["dtype"], r["kind"]): Row(
                _positive(r["limit"]),
                _positive(r["scatter"]),
                int(r["runs"]),
                _positive(r["benign"]),
            )
            for r in content["rows"]
        }
        low = {dtype: float(value) for dtype, value in content["low"].items()}
        if not rows:
            raise ValueError("it has no rows")
        return Limits(content["device_class"], str(path), rows, low)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadOption(
            f"the table of limits {path} cannot be read ({type(error).__name__}: {error}): "
            "remove it, or make it anew with harness calibrate"
        ) from None


def write_limits(path: Path, limits: Limits, provenance: Mapping[str, Any]) -> None:
    """Write a table whole or not at all, a row a line."""
    rows = [
        {"measure": m, "dtype": d, "kind": k}
        | {"limit": round(row.limit, 3), "benign": round(row.benign, 3)}
        | {"scatter": round(row.scatter, 4), "runs": row.runs}
        for (m, d, k), row in sorted(limits.rows.items())
    ]
    head = {
        "schema": SCHEMA,
        "device_class": limits.device_class,
        **provenance,
        "low": {dtype: round(value, 3) for dtype, value in sorted(limits.low.items())},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json_with_rows(head, "rows", rows))


def _positive(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{value!r} is not a positive number")
    return number
