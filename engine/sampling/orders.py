"""In which order filters are applied, and what else differs between libraries: a table.

Only data; `filters.py` and `sampler.py` obey it. A bias comes first and penalties second in all
libraries, repetition before presence before frequency, so that the order is that of the others.

Sources, read at these versions:
- transformers 5.23: `_get_logits_processor` of generation/utils.py, generation/logits_process.py.
- mlx-lm 0.32.2: `make_sampler` and `make_logits_processors` of sample_utils.py.
- llama.cpp of January 2026: src/llama-sampler.cpp, `common_sampler_init` of common/sampling.cpp,
  defaults of common/common.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Which of some equal tokens stay where there is no room for all: "all" makes room.
Ties = Literal["all", "lowest", "highest"]


@dataclass(frozen=True)
class Order:
    """How one library samples.

    `steps` are names of `filters.FILTERS`. Penalties look back on `window` tokens, on all where it
    is None; those for presence and frequency on the answer alone where `answer_only`. `top_k_ties`
    and its like say which tokens of equal logits stay at the edge, by their ids. `typical_reached`:
    typical_p ends with the token whose sum reaches the mass, else with the one that exceeds it.
    """

    steps: tuple[str, ...]
    window: int | None
    answer_only: bool
    top_k_ties: Ties
    top_p_ties: Ties
    typical_ties: Ties
    typical_reached: bool


ORDERS = {
    "transformers": Order(
        steps=("temperature", "top_k", "top_p", "min_p", "typical_p"),
        window=None,
        answer_only=True,  # transformers has neither penalty; vLLM, which has both, does so
        top_k_ties="all",
        top_p_ties="highest",  # it drops from the front of an ascending sort
        typical_ties="all",
        typical_reached=True,
    ),
    "mlx-lm": Order(
        steps=("top_p", "min_p", "typical_p", "top_k", "temperature"),
        window=20,
        answer_only=False,
        top_k_ties="lowest",  # it takes what a partition leaves in front: any of them
        top_p_ties="all",
        typical_ties="all",  # mlx-lm has no typical_p: as transformers, where mlx-lm has xtc
        typical_reached=True,
    ),
    "llama.cpp": Order(
        steps=("top_k", "typical_p", "top_p", "min_p", "temperature"),
        window=64,
        answer_only=False,
        top_k_ties="lowest",  # here and below it takes what an unstable sort puts first
        top_p_ties="lowest",
        typical_ties="lowest",
        typical_reached=False,
    ),
}
