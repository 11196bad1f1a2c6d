"""golden/MANIFEST.json: which golden belongs to which model, and what its bytes must be.

Knows files and hashes, not what a golden holds. Nothing is ever half written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import one_line
from engine.files import ModelFiles, golden_roots
from engine.weights import read_weights
from engine.whole import write_whole

from ..errors import BadGolden, GoldenMissing

NAME = "MANIFEST.json"
SCHEMA = "harness.manifest/1"
TEXTS = ("file", "sha256", "model", "weights", "dtype", "reference")
MORE_TEXTS = ("config", "tokenizer", "python", "platform", "command", "date", "source")
TABLES = ("device", "packages")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a golden folder; BadGolden where it is none."""
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"schema {manifest['schema']!r}, not {SCHEMA!r}")
        for entry in manifest["goldens"]:
            _check_entry(entry)
        return manifest
    except FileNotFoundError:
        raise BadGolden(f"{path} does not exist: harness golden record makes it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadGolden(f"{path} is not a manifest of goldens: {one_line(error)}") from None


def _check_entry(entry: Mapping[str, Any]) -> None:
    """Raise ValueError for an entry that lacks something, or has it in another form."""
    if missing := [key for key in TEXTS if key not in entry]:
        raise ValueError(f"an entry without {missing[0]!r}")
    for kind, keys in ((str, (*TEXTS, *MORE_TEXTS)), (dict, TABLES), (int, ("bytes",))):
        for key in keys:
            if key in entry and type(entry[key]) is not kind:
                raise ValueError(f"an entry whose {key} is {str(entry[key])[:40]!r}")


def find_golden(files: ModelFiles, dtype: str, reference: str) -> tuple[dict[str, Any], Path]:
    """The entry recorded from exactly these weights, and its file."""
    found, near = None, []
    for folder in golden_folders(files):
        for entry in read_manifest(folder)["goldens"]:
            found = found or identity(files)
            if entry["weights"] != found["weights"]:
                continue
            if (entry["dtype"], entry["reference"]) == (dtype, reference):
                path = folder / contained(entry["file"], folder)
                check_model(files, found, entry, path)
                return entry, path
            near.append(f"{entry['reference']} at {entry['dtype']}")
    command = f"harness golden record --model {files.name} --reference {reference} --dtype {dtype}"
    there = f" (there is {', '.join(dict.fromkeys(near))})" if near else ""
    raise GoldenMissing(
        f"no golden of {files.name} from {reference} at {dtype}{there}: make one with `{command}`"
    )


def golden_folders(files: ModelFiles) -> Iterator[Path]:
    """Golden folders: what MLX_PARITY_GOLDENS names, the one the model lies in, then those models
    are looked up in."""
    named = os.environ.get("MLX_PARITY_GOLDENS")
    candidates = [files.folder.parent.parent, *(root.parent for root in golden_roots())]
    if named:
        candidates.insert(0, Path(named))
    seen = set()
    for folder in candidates:
        if folder.resolve() not in seen and (folder / NAME).exists():
            seen.add(folder.resolve())
            yield folder


def contained(file: str, folder: Path) -> str:
    """A file name of the manifest, which must stay inside its folder."""
    odd = "\\" in file or not file.isprintable()
    if Path(file).is_absolute() or ".." in Path(file).parts or odd or not file:
        raise BadGolden(f"{folder / NAME} names {file!r}, outside its folder")
    return file


def check_hash(path: Path, entry: Mapping[str, Any]) -> None:
    """Raise BadGolden unless the file's bytes are the recorded ones."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadGolden(f"golden {path} cannot be read: {error.strerror}") from None
    if found != entry["sha256"]:
        raise BadGolden(
            f"golden {path} has sha256 {found[:12]}..., the manifest says "
            f"{entry['sha256'][:12]}...: it was altered or cut short; record it again"
        )


def check_model(
    files: ModelFiles, found: Mapping[str, str], entry: Mapping[str, Any], path: Path
) -> None:
    """Raise BadGolden unless the golden is of these weights, this config and this tokenizer."""
    for what, digest in found.items():
        if entry.get(what) != digest:
            raise BadGolden(
                f"golden {path} was recorded from another {what} than {files.folder} has: "
                "record it again"
            )


def identity(files: ModelFiles) -> dict[str, str]:
    """sha256 of the weights, the configuration and the tokenizer's files of a model."""
    config = json.dumps(dict(files.config), sort_keys=True).encode()
    tokenizer = [files.folder / name for name in TOKENIZER_FILES]
    return {
        "weights": weights_digest(read_weights(files)),
        "config": hashlib.sha256(config).hexdigest(),
        "tokenizer": hashlib.sha256(
            b"".join(part.read_bytes() for part in tokenizer if part.exists())
        ).hexdigest(),
    }


def weights_digest(tensors: Mapping[str, Any]) -> str:
    """sha256 of names, dtypes, shapes and values: the same in either file format."""
    import mlx.core as mx

    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        raw = mx.contiguous(array).reshape(-1)
        digest.update(np.array(raw.view(mx.uint8)).tobytes())
    return digest.hexdigest()


def model_name(files: ModelFiles) -> str:
    """How goldens of a model are called: the last part of a folder's name or a Hub id."""
    name = Path(files.name)
    return files.folder.resolve().name if name.suffix or name.exists() else name.name


def add_entry(folder: Path, entry: Mapping[str, Any]) -> None:
    """Put an entry into the manifest, in place of an earlier one for the same file."""
    path = folder / NAME
    known = read_manifest(folder)["goldens"] if path.exists() else []
    others = [each for each in known if each["file"] != entry["file"]]
    goldens = sorted([*others, entry], key=lambda each: each["file"])
    text = json.dumps({"schema": SCHEMA, "goldens": goldens}, indent=1) + "\n"
    write_whole(path, text.encode())


def install(part: Path, folder: Path, entry: Mapping[str, Any]) -> None:
    """Move a part into place and record it: both, or neither."""
    path = folder / entry["file"]
    old = path.with_name(f".{path.name}.old")
    old.unlink(missing_ok=True)
    if path.exists():
        try:
            os.link(path, old)
        except OSError:  # a file system without links
            shutil.copyfile(path, old)
    try:
        os.replace(part, path)
        add_entry(folder, entry)
    except BaseException:
        if not is_recorded(folder, entry):
            if old.exists():
                os.replace(old, path)
            elif path.exists():
                os.replace(path, part)
        raise
    finally:
        old.unlink(missing_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.part"):
        stale.unlink()


@contextlib.contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the folder against other writers of parts and manifest; or `wait` until they are done.

    Raises BadGolden where it is held and nobody waits.
    """
    traces = folder / "traces"
    traces.mkdir(parents=True, exist_ok=True)
    handle = os.open(traces, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    except BlockingIOError:
        raise BadGolden(f"another command writes to {folder}: wait until it is done") from None
    finally:
        os.close(handle)


def part_of(folder: Path, entry: Mapping[str, Any]) -> Path:
    """Where a golden lies until it is whole."""
    path = folder / entry["file"]
    return path.with_name(f".{path.name}.{entry['sha256'][:16]}.part")


def is_recorded(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether the manifest has this very golden."""
    known = read_manifest(folder)["goldens"] if (folder / NAME).exists() else []
    return any((each["file"], each["sha256"]) == (entry["file"], entry["sha256"]) for each in known)
