"""Models on this machine: where other programs keep theirs, and in folders of one's own.

What counts as a model is what `find_model` takes, beside formats that can only be named as what
they are. Weights are not read. Nothing that is unreadable, broken or going away stops a search: it
is passed over and told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import EngineError
from .files import INDEX, PICKLES, ModelFiles, find_model, golden_roots

FORMATS = ("npz", "safetensors")
OLLAMA_MODEL = "application/vnd.ollama.image.model"
_GGUF = "GGUF, which the engine does not read: use the original's safetensors"


@dataclass(frozen=True)
class Found:
    """One model. `name` is what `--model` takes, `bytes` what its weights take on disk.

    `problem` says why the engine cannot open it; then it has no `files`.
    """

    name: str
    place: str
    path: Path
    format: str
    bytes: int
    files: ModelFiles | None = None
    problem: str | None = None


@dataclass
class Search:
    """What was found, and what was passed over, one line each."""

    found: list[Found] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def skip(self, why: str) -> None:
        """Note what was passed over, once."""
        if why not in self.skipped:
            self.skipped.append(why)


def discover(folders: Sequence[str] = (), format: str | None = None) -> Search:
    """Look in `folders`, those of MLX_PARITY_MODEL_DIRS, and the places programs keep models in.

    Each of `folders`, as the variable, may name several with ; or the system's separator between.
    A model that several places lead to is named once, by the first. `format` is of FORMATS.
    """
    if format is not None and format not in FORMATS:
        raise EngineError(f"--format {format!r}: there are {' and '.join(FORMATS)}")
    search, seen = Search(), set()
    for found in _everything(folders, search):
        identity = (os.path.realpath(found.path), found.format)
        if identity in seen or format not in (None, found.format):
            continue
        seen.add(identity)
        search.found.append(found)
    return search


def _everything(folders: Sequence[str], search: Search) -> Iterator[Found]:
    named = ";".join([*folders, os.environ.get("MLX_PARITY_MODEL_DIRS", "")])
    names = named.replace(os.pathsep, ";").split(";")
    configured = [Path(name).expanduser() for name in names if name.strip()]
    for folder in configured:
        if not os.path.lexists(folder):
            search.skip(f"{folder} does not exist")
    home = Path.home()
    yield from _golden(search)
    for place, roots in (
        ("configured", configured),
        ("./models", [Path("models")]),
        ("LM Studio", [home / ".lmstudio/models", home / ".cache/lm-studio/models"]),
    ):
        for root in roots:
            for folder in _folders(root, search):
                yield from _models_in(folder, place, search)
    yield from _hugging_face(search)
    yield from _ollama(search)


def _golden(search: Search) -> Iterator[Found]:
    known = set()
    for root in golden_roots():
        for folder in _folders(root, search):
            name = folder.name if folder.parent == root else None
            for found in _models_in(folder, "golden", search, name):
                if found.name not in known:
                    known.add(found.name)
                    yield found


def _folders(root: Path, search: Search) -> Iterator[Path]:
    """A folder and all below it, each once however many links lead there; hidden ones apart."""
    waiting, seen = [root], set()
    while waiting:
        folder = waiting.pop()
        identity = os.path.realpath(folder)
        if identity not in seen:
            seen.add(identity)
            inner = _listed(folder, search)
            waiting += [path for path in reversed(inner) if os.path.isdir(path)]
            yield folder


def _models_in(
    folder: Path, place: str, search: Search, name: str | None = None
) -> Iterator[Found]:
    """The models that lie in a folder itself: as a whole, or files that each are one."""
    entries = _listed(folder, search)
    files = [path for path in entries if os.path.isfile(path)]
    for path in entries:
        if os.path.islink(path) and not os.path.exists(path):
            search.skip(f"{path} is a link to nothing")
    whole, packed = (
        [path for path in files if path.suffix == suffix] for suffix in (".safetensors", ".npz")
    )
    pickled = [path for path in files if path.suffix in PICKLES]
    name = name or _shown(folder)
    if whole or folder / INDEX in files:
        yield _opened(name, place, folder, "safetensors", whole)
    elif packed:
        found = _opened(name, place, folder, "npz", packed)
        if found.files:
            yield found
            packed = []
    elif pickled and folder / "config.json" in files:
        yield _opened(name, place, folder, "pickle", pickled)
    for path in packed:
        yield _opened(_shown(path), place, path, "npz", [path])
    for path in files:
        if path.suffix == ".gguf":
            yield Found(_shown(path), place, path, "gguf", _bytes([path]), problem=_GGUF)


def _opened(name: str, place: str, path: Path, format: str, weights: Iterable[Path]) -> Found:
    try:
        files = find_model(path)
    except (EngineError, OSError) as error:
        return Found(name, place, path, format, _bytes(weights), problem=str(error))
    return Found(name, place, path, format, _bytes(files.weights), files)


def _hugging_face(search: Search) -> Iterator[Found]:
    """Snapshots in the Hub's cache: models--OWNER--NAME/snapshots/COMMIT, refs/BRANCH."""
    for repository in _listed(_hub_cache(), search):
        kind, _, name = repository.name.partition("--")
        if kind != "models":
            continue
        main = _commit(repository / "refs" / "main")
        hub_id = name.replace("--", "/", 1) if "--" in name else None
        for snapshot in _listed(repository / "snapshots", search):
            known = hub_id if snapshot.name == main else None
            yield from _models_in(snapshot, "Hugging Face", search, known)


def _hub_cache() -> Path:
    """Where huggingface_hub keeps it; asked without importing that."""
    environ = os.environ
    home = environ.get("HF_HOME") or Path(
        environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return Path(environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _commit(ref: Path) -> str | None:
    try:
        return ref.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _ollama(search: Search) -> Iterator[Found]:
    """Manifests name blobs by their hashes: manifests/HOST/OWNER/NAME/TAG, blobs/sha256-HASH."""
    root = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    for folder in _folders(root / "manifests", search):
        for manifest in _listed(folder, search):
            if os.path.isdir(manifest):
                continue
            try:
                layers = json.loads(manifest.read_bytes())["layers"]
                layer = next(each for each in layers if each["mediaType"] == OLLAMA_MODEL)
                blob = root / "blobs" / str(layer["digest"]).replace(":", "-")
                with blob.open("rb") as file:
                    gguf = file.read(4) == b"GGUF"
                size = blob.stat().st_size
            except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError):
                search.skip(f"{manifest} names no model that is here")
                continue
            owner = manifest.parent.parent.name
            name = f"{manifest.parent.name}:{manifest.name}"
            name = name if owner == "library" else f"{owner}/{name}"
            format, problem = ("gguf", _GGUF) if gguf else ("unknown", "Ollama's own, no GGUF")
            yield Found(name, "Ollama", blob, format, size, problem=problem)


def _listed(folder: Path, search: Search) -> list[Path]:
    """What is in a folder, hidden files apart; nothing where there is no such folder."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        search.skip(f"{folder} cannot be read ({error.strerror})")
        return []


def _bytes(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except OSError:  # gone by now
            continue
    return total


def _shown(path: Path) -> str:
    """A path as `--model` takes it, with ~ for the home folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
