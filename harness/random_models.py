"""Small random models of every family the engine has, written to disk as transformers writes them.

Found by scanning engine/architectures, so that a new family is there with no change here. Weights
are random, but made to expose faults: gains away from one, biases not zero, peaked attention.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.architectures import architecture, supported

from .backends._transformers import import_torch, parsed

# Parameters that make queries and keys; attention is flat where they are as small as others.
QUERIES = ("q_proj", "q_b_proj", "k_proj", "qkv", "c_attn", "query_key_value")


def variants() -> list[tuple[str, str]]:
    """(model_type, variant) of every fault-exposing configuration."""
    return [(family, name) for family in supported() for name in architecture(family).TINY]


def config_of(family: str, variant: str) -> dict[str, Any]:
    """The transformers configuration of one variant."""
    return dict(architecture(family).TINY[variant])


def write_model(
    folder: Path, config: dict[str, Any], dtype: str = "float32", seed: int = 0
) -> Path:
    """Make a random model of a configuration and save it in `folder`, config.json as given."""
    torch, transformers = import_torch()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        parsed(config), attn_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread_out(name, parameter, torch)
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and name.endswith("bias"):
                buffer.normal_(0, 0.2)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def spread_out(name: str, parameter: Any, torch: Any) -> None:
    """Fill one parameter in place: where a default would hide a fault, something else."""
    if name.endswith("bias"):
        parameter.normal_(0, 0.2)
    elif parameter.ndim == 1 or "norm" in name:  # a gain, around whatever the family starts from
        parameter.add_(torch.empty_like(parameter).uniform_(-0.4, 0.4))
    elif "embed" in name or "wte" in name or "wpe" in name:
        parameter.normal_(0, 0.6)
    elif any(word in name for word in QUERIES):
        parameter.normal_(0, 2.0 / parameter.shape[-1] ** 0.5)
    else:
        matrix = [n for n in parameter.shape[-2:] if n > 1]  # experts are stacked, a gate is a row
        parameter.normal_(0, 1.0 / min(matrix) ** 0.5)
