"""The sampling a model's makers advise: generation_config.json, as transformers reads it.

Its values are transformers', and so is the order; what the file leaves open is what transformers
takes for it, a top_k of 50 included (`_get_default_generation_params`, transformers 5.23).
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InvalidConfig, InvalidRequest
from ..files import read_json
from .wishes import Sampling

FILE = "generation_config.json"
_DRAWN = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


def model_defaults(folder: Path) -> Sampling:
    """What the model in a folder asks for; greedy where it does not ask to sample.

    Raises InvalidConfig where there is no such file, or it asks for what cannot be.
    """
    path = folder / FILE
    if not path.is_file():
        raise InvalidConfig(f"{folder} has no {FILE}: leave --defaults out and give the settings")
    stated = {
        key: value for key, value in read_json(path, InvalidConfig).items() if value is not None
    }
    asked = {"repetition_penalty": stated.get("repetition_penalty", 1.0)}
    if stated.get("do_sample"):
        asked |= {key: stated.get(key, usual) for key, usual in _DRAWN.items()}
    try:
        return Sampling(**asked)
    except InvalidRequest as wrong:
        raise InvalidConfig(f"{path}: {wrong}") from None
