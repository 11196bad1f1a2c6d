"""Convert a model between .npz and .safetensors, and quantise it on the way where that is asked.

Otherwise tensors pass through unchanged in name, dtype and value, under transformers' names where
they came under Meta's. The configuration and the tokenizer's files go along, so that the result is
a model by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EngineError, InvalidConfig, UnsupportedFormat
from .files import PICKLES, find_model, read_json
from .whole import replacing

if TYPE_CHECKING:
    from .weights.quantised import Packing

# What goes along where it exists, config.json apart.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "tekken.json",
)


def convert(
    model: str | Path,
    out: str | Path,
    revision: str | None = None,
    *,
    quantise: Packing | None = None,
    force: bool = False,
) -> Path:
    """Write a model's weights to `out` and return the file written.

    `out` ends in .npz or .safetensors, or is a folder that gets model.safetensors. `quantise` packs
    the matrices so. An existing file is replaced only with `force`; the model's own files never
    are. Raises EngineError.
    """
    from .weights import read_weights, write_weights

    files = find_model(model, revision)
    target = _target(Path(out).expanduser())
    if target.exists():
        if any(target.samefile(source) for source in files.weights):
            raise EngineError(f"{target} is the model to be converted: choose another name for it")
        if not force:
            raise EngineError(f"{target} exists: choose another name, or pass --force")
    at_home = target.parent.exists() and target.parent.samefile(files.folder)
    if quantise and at_home:
        raise EngineError(
            f"{target} lies beside its original, and both need a config.json of their own: choose "
            "another folder"
        )
    tensors, config = read_weights(files), dict(files.config)
    if quantise:
        from .quantise import quantised_model

        tensors, config = quantised_model(files, tensors, quantise)
    companions = _companions(files.folder, config, target.parent, at_home)
    clash = [path for path, content in companions.items() if _differs(path, content)]
    if clash and not force:
        raise EngineError(
            f"{clash[0]} exists and is another model's: choose another folder, or pass --force"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as all_or_none:
            for path, content in companions.items():
                all_or_none.enter_context(replacing(path)).write_bytes(content)
            write_weights(target, tensors, config if target.suffix == ".npz" else None)
    except OSError as cause:
        raise EngineError(
            f"{target} cannot be written ({cause.strerror or cause}): check place, room and "
            "permissions"
        ) from None
    return target


def _target(out: Path) -> Path:
    if out.is_dir() or out.suffix not in (".npz", ".safetensors"):
        if out.is_file() or out.suffix in (*PICKLES, ".gguf"):
            raise UnsupportedFormat(f"{out} is no format to write: end it in .npz or .safetensors")
        return out / "model.safetensors"
    return out


def _companions(
    source: Path, config: Mapping[str, Any], folder: Path, at_home: bool
) -> dict[Path, bytes]:
    """Files to put into `folder` beside the weights, with their content."""
    names = () if at_home else COMPANIONS
    found = {folder / n: (source / n).read_bytes() for n in names if (source / n).is_file()}
    own = source / "config.json"
    if own.is_file() and read_json(own, InvalidConfig) == config:
        return found if at_home else {**found, folder / own.name: own.read_bytes()}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {**found, folder / own.name: text.encode()}


def _differs(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() != content
