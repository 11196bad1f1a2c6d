"""What a model's configuration and the headers of its weights say of it; weights are not read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import EngineError
from .files import ModelFiles


@dataclass(frozen=True)
class Facts:
    """One model.

    `dtype` names the floating-point dtypes of its tensors, `quantisation` how its matrices are
    packed. `problem` is why the engine cannot run it; `proven` whether a certificate holds for it
    here, and `reasons` why not.
    """

    family: str
    parameters: int
    dtype: str
    quantisation: str | None
    problem: str | None
    proven: bool
    reasons: tuple[str, ...]


def facts_of(files: ModelFiles) -> Facts:
    """Read headers, and hashes as far as they are remembered; what is wrong is `problem`."""
    from .certificate import Standing, standing

    family, parameters, dtypes, problem = files.config.get("model_type"), 0, set(), None
    found = Standing(None)
    try:
        parameters, dtypes = _headers(files)
        _check_supported(files)
        found = standing(files, read=False)
    except (EngineError, OSError) as error:
        problem = str(error)
    return Facts(
        family=family if isinstance(family, str) else "unknown",
        parameters=parameters,
        dtype=", ".join(sorted(dtypes)) or "unknown",
        quantisation=packing_of(files.config),
        problem=problem,
        proven=found.proven,
        reasons=found.reasons,
    )


def packing_of(config: Mapping[str, Any]) -> str | None:
    """How a configuration says that matrices are packed, as people say it."""
    raw = config.get("quantization") or config.get("quantization_config")
    if not isinstance(raw, Mapping):
        return None
    mode = raw.get("quant_method") or raw.get("mode") or "affine"
    return f"{raw['bits']}-bit {mode}" if "bits" in raw else str(mode)


def _headers(files: ModelFiles) -> tuple[int, set[str]]:
    """How many numbers are stored, and in which floating-point dtypes."""
    from .weights import floating_dtypes, shapes_of

    count = sum(math.prod(shape) for shape in shapes_of(files.weights).values())
    return count, floating_dtypes(files.weights)


def _check_supported(files: ModelFiles) -> None:
    """Raise where the engine has no such family, or not all that the configuration asks for."""
    from .architectures import decoder_spec
    from .config import Config
    from .decoder import Decoder
    from .weights.quantised import quantisation

    where = str(files.folder / "config.json")
    Decoder(decoder_spec(Config(files.config, where)))  # of parameters that are never made
    quantisation(files.config, where)
