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


@dataclass(frozen=True)
class Order:
    """How one library samples.

    `steps` are names of `filters.FILTERS`. `with_equals` are those that keep every token equal to
    the last one they keep; the others cut among equals, the library wherever its sort left them,
    the engine so that the lowest ids stay. Penalties look back on `window` tokens, on all where it
    is None; those for presence and frequency on the answer alone where `answer_only`. With
    `typical_reaches` typical_p ends at the token that reaches its mass, else at the one beyond it.
    """

    steps: tuple[str, ...]
    with_equals: frozenset[str]
    window: int | None
    answer_only: bool
    typical_reaches: bool


ORDERS = {
    "transformers": Order(
        steps=("temperature", "top_k", "top_p", "min_p", "typical_p"),
        with_equals=frozenset({"top_k", "typical_p"}),
        window=None,
        answer_only=True,  # transformers has neither penalty; vLLM, which has both, does so
        typical_reaches=True,
    ),
    "mlx-lm": Order(
        # mlx-lm has no typical_p: here it stands where mlx-lm has xtc, and is transformers'.
        steps=("top_p", "min_p", "typical_p", "top_k", "temperature"),
        with_equals=frozenset({"top_p", "typical_p"}),
        window=20,
        answer_only=False,
        typical_reaches=True,
    ),
    "llama.cpp": Order(
        steps=("top_k", "typical_p", "top_p", "min_p", "temperature"),
        with_equals=frozenset(),
        window=64,
        answer_only=False,
        typical_reaches=False,
    ),
}
