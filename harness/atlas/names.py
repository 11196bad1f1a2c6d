"""Tensors of a saved model under the names that checkpoints on the Hub have.

transformers reads those and others alike, and saves them under one name; a candidate may know the
other alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .recipes import Recipe

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def rename(folder: Path, recipe: Recipe) -> None:
    """Save the weights in a folder again, called as the recipe says."""
    from safetensors.numpy import load_file, save_file

    file = folder / "model.safetensors"
    tensors = renamed(load_file(file), recipe)
    save_file(tensors, file, metadata={"format": "pt"})


def renamed(tensors: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """`names` are regular expressions and what takes their place. `stacked` makes one gate_up_proj
    (E, 2F, C) and one down_proj (E, C, F) of all experts of a block."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, other in recipe.names:
            name = re.sub(pattern, other, name)
        found[name] = tensor
    return _stacked(found) if recipe.stacked else found


def _stacked(tensors: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    found, experts = {}, defaultdict(dict)
    for name, tensor in tensors.items():
        if match := EXPERT.fullmatch(name):
            block, number, part = match.groups()
            experts[block][part, int(number)] = tensor
        else:
            found[name] = tensor
    for block, parts in experts.items():
        gate, up, down = (
            np.stack([parts[key] for key in sorted(parts) if key[0] == part])
            for part in ("gate", "up", "down")
        )
        found[f"{block}.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        found[f"{block}.down_proj"] = down
    return found
