"""What a parity certificate is about: one model, run by one engine on one kind of machine.

Two subjects are one only if every hash, version and setting is the same. Nothing here knows what a
certificate says of its subject, or who wrote it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .files import ModelFiles

# MLX's own builds, of which one stands beside mlx on Linux and macOS; then what else moves numbers
# or tokens.
BUILDS = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
PACKAGES = ("mlx", *BUILDS, "numpy", "tokenizers")


@dataclass(frozen=True)
class Subject:
    """Everything but the weights, which are large: those are `weights_of`.

    `config` is the sha256 of the configuration as read, `tokenizer` that of every file that the
    tokenizer may be made of, by name; `source` of the engine's own code.
    """

    config: str
    tokenizer: Mapping[str, str]
    engine: str
    source: str
    packages: Mapping[str, str]
    device_class: str
    tf32: str

    @classmethod
    def parsed(cls, content: Mapping[str, Any]) -> Subject:
        """The reverse of `described`. Raises KeyError or TypeError."""
        fields = {name: content[name] for name in cls.__dataclass_fields__}
        for name, value in fields.items():
            table = name in ("tokenizer", "packages")
            texts = value.values() if table else [value]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{name} is no text")
        return cls(**fields)

    @property
    def described(self) -> dict[str, Any]:
        """As it stands in a certificate."""
        return asdict(self)


@dataclass(frozen=True)
class Weights:
    """One weight file: its name in the model's folder, its bytes and their sha256, if known."""

    file: str
    bytes: int
    sha256: str | None


def subject_of(files: ModelFiles, device: str | None = None) -> Subject:
    """What running this model here and now is; weights are not read.

    `device` is "cpu", "metal" or "cuda", None for MLX's default. Raises EngineError.
    """
    from .hashes import sha256_of
    from .runtime import device_class, tf32_pinned_off

    paths = {str(path.relative_to(files.folder)): path for path in _tokenizer_files(files.folder)}
    hashes = sha256_of(paths.values())
    return Subject(
        config=hashlib.sha256(json.dumps(files.config, sort_keys=True).encode()).hexdigest(),
        tokenizer={name: hashes[path] for name, path in paths.items()},
        engine=__version__,
        source=source_sha256(),
        packages=versions(),
        device_class=device_class(device),
        tf32="off" if tf32_pinned_off() else "on",
    )


def weights_of(files: ModelFiles, *, read: bool = True) -> tuple[Weights, ...]:
    """Every weight file of a model, hashed; unless `read`, as far as hashes are remembered.

    Raises EngineError.
    """
    from .hashes import known_sha256, sha256_of

    if read:
        found = sha256_of(files.weights)
    else:
        found = {path: known_sha256(path) for path in files.weights}
    return tuple(Weights(p.name, p.stat().st_size, digest) for p, digest in found.items())


def versions() -> dict[str, str]:
    """The installed ones of PACKAGES, and their versions."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def source_sha256() -> str:
    """sha256 over the names and the text of every source file of the engine."""
    digest, root = hashlib.sha256(), Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()


def differences(certified: Subject, here: Subject) -> list[str]:
    """What is not the same, one line each."""
    found = []
    if certified.config != here.config:
        found.append("the configuration is not the one that was certified")
    for name in sorted({*certified.tokenizer, *here.tokenizer}):
        if certified.tokenizer.get(name) != here.tokenizer.get(name):
            found.append(f"{name} is not the one that was certified")
    if certified.engine != here.engine:
        found.append(f"the engine is {here.engine}, certified was {certified.engine}")
    elif certified.source != here.source:
        found.append("the engine's source is not that which was certified")
    for name in sorted({*certified.packages, *here.packages}):
        was, now = certified.packages.get(name), here.packages.get(name)
        if was != now:
            found.append(f"{name} is {now or 'not installed'}, certified was {was or 'none'}")
    if certified.device_class != here.device_class:
        found.append(f"the device is {here.device_class}, certified was {certified.device_class}")
    if certified.tf32 != here.tf32:
        found.append(f"TF32 is {here.tf32}, certified was {certified.tf32}")
    return found


def _tokenizer_files(folder: Path) -> list[Path]:
    """What tokens, special ids and chat templates may be read from."""
    from .convert import COMPANIONS

    templates = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return [path for name in COMPANIONS if (path := folder / name).is_file()] + templates
