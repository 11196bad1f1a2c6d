"""Convert a model between .npz and .safetensors.

Tensors pass through unchanged in name, dtype and value; what they mean is of no concern here. The
configuration and the tokenizer's files go along, so that the result is a model by itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import EngineError, UnsupportedFormat
from .files import PICKLES, find_model

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
    model: str | Path, out: str | Path, revision: str | None = None, *, force: bool = False
) -> Path:
    """Write a model's weights to `out` and return the file written.

    `out` ends in .npz or .safetensors, or is a folder that gets model.safetensors. An existing
    file is replaced only with `force`; the model's own files never are. Raises EngineError.
    """
    from .weights import read_weights, write_weights

    files = find_model(model, revision)
    target = _target(Path(out).expanduser())
    if target.exists():
        if any(target.samefile(source) for source in files.weights):
            raise EngineError(f"{target} is the model to be converted: choose another name for it")
        if not force:
            raise EngineError(f"{target} exists: choose another name, or pass --force")
    companions = _companions(files.folder, files.config, target.parent)
    clash = [path for path, content in companions.items() if _differs(path, content)]
    if clash and not force:
        raise EngineError(
            f"{clash[0]} exists and is another model's: choose another folder, or pass --force"
        )
    tensors = read_weights(files)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_weights(target, tensors, files.config if target.suffix == ".npz" else None)
        for path, content in companions.items():
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
    except OSError as cause:
        raise EngineError(
            f"{target} cannot be written ({cause.strerror or cause}): check place and permissions"
        ) from None
    return target


def _target(out: Path) -> Path:
    if out.is_dir() or out.suffix not in (".npz", ".safetensors"):
        if out.is_file() or out.suffix in (*PICKLES, ".gguf"):
            raise UnsupportedFormat(f"{out} is no format to write: end it in .npz or .safetensors")
        return out / "model.safetensors"
    return out


def _companions(source: Path, config: Mapping[str, Any], folder: Path) -> dict[Path, Path | bytes]:
    """Files to put into `folder` beside the weights, with where their content comes from."""
    at_home = folder.exists() and folder.samefile(source)
    names = () if at_home else ("config.json", *COMPANIONS)
    found: dict[Path, Path | bytes] = {}
    found |= {folder / name: source / name for name in names if (source / name).is_file()}
    if not (source / "config.json").is_file():  # it came out of an .npz
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        return {**found, folder / "config.json": text.encode()}
    return found


def _differs(path: Path, content: Path | bytes) -> bool:
    if not path.exists():
        return False
    return path.read_bytes() != (content if isinstance(content, bytes) else content.read_bytes())
