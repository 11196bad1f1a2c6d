"""Is a tokenizer the original's? Ids, offsets, decoding, streaming, chat templates, special ids.

`sides.py` gives a tokenizer the form in which it is asked, `corpus.py` has what it is asked about,
`questions.py` the questions, `comparing.py` asks both sides and makes what differs small.
"""

from __future__ import annotations

from .comparing import Answer, Difference, Findings, State, compare
from .sides import (
    Side,
    engine_side,
    mlx_lm_side,
    remembering,
    server_side,
    transformers_side,
)

__all__ = [
    "Answer",
    "Difference",
    "Findings",
    "Side",
    "State",
    "compare",
    "engine_side",
    "mlx_lm_side",
    "remembering",
    "server_side",
    "transformers_side",
]
