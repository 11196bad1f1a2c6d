"""Random projections in place of arrays: errors keep their size, files lose theirs.

(T, width) becomes (T, columns), x @ S with random signs, so that the relative error of sketches is
that of the arrays within a few per cent. Source: Achlioptas 2003, "Database-friendly random
projections"; docs/METHOD.md, "Sketches", has what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .seeded import signs

COLUMNS = 16


@dataclass(frozen=True)
class Sketch:
    """The projection of every width to `columns`; narrower arrays stay as they are."""

    columns: int = COLUMNS

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """(T, width) -> (T, columns), float64."""
        width = array.shape[1]
        if width <= self.columns:
            return array
        return array.astype(np.float64) @ _projection(width, self.columns)


@lru_cache(maxsize=4)
def _projection(width: int, columns: int) -> np.ndarray:
    return signs(columns, width * columns).reshape(width, columns) / np.sqrt(columns)
