"""Which families there are on both sides, and why every other one is left out.

Computed: transformers' mapping of causal language models on one side, what a backend says it has
(`families()` in its file) on the other. Only what no rule can tell stands in the recipes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..backends import find_backend
from ..backends._transformers import import_torch
from ..errors import BadOption
from .recipes import read_recipes


@dataclass(frozen=True)
class Family:
    """A `model_type`. `left_out` is why it is not attempted, None where it is."""

    name: str
    left_out: str | None = None


def families(candidate: str) -> list[Family]:
    """Every family of either side, sorted. Raises BadOption for a backend that cannot list any."""
    backend, _ = find_backend(candidate)
    if not hasattr(backend, "families"):
        raise BadOption(f"--candidate {candidate!r}: it lists no families, mlx-lm and engine do")
    mine: frozenset[str] = backend.families()
    theirs = causal()
    recipes = read_recipes()
    found = []
    for name in sorted({*theirs, *mine}):
        reason = None
        if name not in mine:
            reason = f"{candidate} does not have it"
        elif name not in theirs:
            reason = "transformers has no causal language model of this name"
        elif name in recipes:
            reason = recipes[name].left_out
        found.append(Family(name, reason))
    return found


def causal() -> frozenset[str]:
    """The model types that transformers has a causal language model for."""
    import_torch()
    from transformers.models.auto import modeling_auto

    return frozenset(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def chosen(candidate: str, names: list[str] | None) -> list[Family]:
    """The families named, or all. Raises BadOption for a name that neither side has."""
    known = {family.name: family for family in families(candidate)}
    for name in names or ():
        if name not in known:
            raise BadOption(f"--families {name!r}: neither transformers nor {candidate} has it")
    return [known[name] for name in names or known]
