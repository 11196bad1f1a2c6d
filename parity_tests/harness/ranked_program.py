"""A rank of the engine as a side, with a fault of `engine/ranked_program.py` planted in it.

`python -m parity_tests.harness.ranked_program FAULT`
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

from harness.backends import _ranked
from parity_tests.engine.ranked_program import FAULTS

if __name__ == "__main__":
    FAULTS[sys.argv[1]](SimpleNamespace(rank=int(os.environ["MLX_RANK"])))  # type: ignore[arg-type]
    _ranked.main()
