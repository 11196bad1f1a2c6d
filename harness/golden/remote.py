"""Goldens that are shared: `push` sends those of a folder to a far end, `pull` fetches them.

A far end (`far_ends.py`) is laid out as a golden folder is: MANIFEST.json and traces/. A file from
there counts only once its size and sha256 are those of the far manifest; until then it is a hidden
part, from which the next pull goes on. What a golden holds is not known here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadGolden
from .far_ends import Pieces, Progress, Source, explained, find_source, find_target
from .manifest import (
    NAME,
    SCHEMA,
    add_entry,
    alone,
    check_hash,
    contained,
    install,
    is_recorded,
    part_of,
    read_manifest,
)

TRIES = 5  # connections for one file; each must bring bytes
MANIFEST_LIMIT = 16 << 20  # bytes of a far manifest
GOLDEN_LIMIT = 64 << 30  # bytes of a golden

Entry = Mapping[str, Any]

_TEXTS = ("file", "sha256", "model", "weights", "dtype", "reference")
_FILE = re.compile(r"traces/\w[\w .+-]{0,160}\.safetensors", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shared:
    """What a push or a pull did."""

    place: str  # the far end; a Hub repository with its commit
    moved: list[str]  # files that were sent or fetched
    kept: list[str]  # files that were there already


def push(
    folder: Path,
    to: str,
    *,
    model: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Shared:
    """Send goldens and put their entries into the far manifest; what else it lists stays.

    `revision` is a branch of a Hub repository; a missing repository is made, a private one. Raises
    BadGolden, with nothing sent, where a golden is not whole or would replace one of other weights.
    """
    here = str(folder)
    goldens = _of_model(_checked(read_manifest(folder)["goldens"], here), model, here)
    for entry in goldens:
        check_hash(folder / contained(entry["file"], folder), entry)
        if (size := (folder / entry["file"]).stat().st_size) != entry["bytes"]:
            raise BadGolden(
                f"golden {folder / entry['file']} has {size:,} bytes, the manifest says "
                f"{entry['bytes']:,}: record it again"
            )
    far = find_target(to, revision)
    manifest = _far_manifest(far)
    known = _parsed(manifest, far.place) if manifest is not None else []
    _check_owners(goldens, known, far.place)
    hashes = {entry["file"]: entry["sha256"] for entry in known}
    place = far.place
    with explained(place):
        kept = [
            entry["file"]
            for entry in goldens
            if hashes.get(entry["file"]) == entry["sha256"]
            and far.has(entry["file"], entry["bytes"])
        ]
        new = [entry["file"] for entry in goldens if entry["file"] not in kept]
        if new or any(entry not in known for entry in goldens):
            files = {file: folder / file for file in new}
            place = far.send({**files, NAME: _merged(manifest, goldens)}, progress)
    return Shared(place, new, kept)


def pull(
    source: str,
    folder: Path,
    *,
    model: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Shared:
    """Fetch goldens and put their entries, with their `source`, into the manifest here.

    `revision` is a commit, tag or branch of a Hub repository. Raises BadGolden; a golden that was
    here is then as it was, and bytes that came are kept for the next pull.
    """
    far = find_source(source, revision)
    manifest = _far_manifest(far)
    if manifest is None:
        raise BadGolden(f"{far.place} has no {NAME}: give a place that was pushed to")
    goldens = _of_model(_parsed(manifest, far.place), model, far.place)
    known = read_manifest(folder)["goldens"] if (folder / NAME).exists() else []
    _check_owners(goldens, known, str(folder))
    try:
        for entry in goldens:
            if not (folder / entry["file"]).resolve().is_relative_to(folder.resolve()):
                raise BadGolden(f"{folder / entry['file']} is a link out of {folder}: remove it")
        with alone(folder):
            return _pull(far, goldens, folder, progress)
    except OSError as error:  # of this side: the far end's are explained where they arise
        raise BadGolden(f"{folder} cannot be written: {error.strerror or error}") from error


def _pull(far: Source, goldens: list[Entry], folder: Path, progress: Progress | None) -> Shared:
    new = [entry for entry in goldens if not _is_whole(folder / entry["file"], entry)]
    parts = [part_of(folder, entry) for entry in new]
    total = sum(entry["bytes"] for entry in new)
    missing = total - sum(part.stat().st_size for part in parts if part.exists())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise BadGolden(
            f"{far.place} has {missing:,} bytes to fetch and {folder} {free:,} free: make room, or "
            "pull one model with --model"
        )
    done = 0
    for entry, part in zip(new, parts, strict=True):

        def report(size: int, file: str = entry["file"], before: int = done) -> None:
            if progress:
                progress(before + size, total, file)

        _fetch(far, entry, part, report)
        install(part, folder, {**entry, "source": far.place})
        done += entry["bytes"]
    for entry in goldens:
        if not is_recorded(folder, entry):  # a whole file that nobody wrote down
            add_entry(folder, {**entry, "source": far.place})
    moved = [entry["file"] for entry in new]
    return Shared(far.place, moved, [e["file"] for e in goldens if e["file"] not in moved])


def _fetch(far: Source, entry: Entry, part: Path, report: Callable[[int], None]) -> None:
    """Bring a part to its size and hash; a connection that breaks is taken up where it broke."""
    name, size = f"{far.place}/{entry['file']}", entry["bytes"]
    with part.open("ab") as file:
        at, tries = file.tell(), TRIES
        while at < size:
            before, tries = at, tries - 1
            failure = f"{name} ended before its {size:,} bytes: pull again, or ask for a new push"
            try:
                with contextlib.closing(_pieces(far, entry["file"], at)) as pieces:
                    for position, piece in pieces:
                        at = position + len(piece)
                        if at > size:
                            break
                        file.truncate(position)
                        file.write(piece)
                        report(at)
            except BadGolden as error:
                failure = str(error)
            if at < size and (at <= before or not tries):
                raise BadGolden(failure)
    found = _sha256(part)
    if at > size or found != entry["sha256"]:
        part.unlink()
        raise BadGolden(
            f"{name} goes on after the {size:,} bytes of its manifest: ask for a new push"
            if at > size
            else f"{name} came with sha256 {found[:12]}..., its manifest says "
            f"{entry['sha256'][:12]}...: deleted; pull again, or ask for a new push"
        )


def _far_manifest(far: Source) -> bytes | None:
    """MANIFEST.json as it stands there; None where there is none."""
    data = bytearray()
    with explained(far.place), contextlib.closing(far.pieces(NAME, 0)) as pieces:
        try:
            for _, piece in pieces:
                data += piece
                if len(data) > MANIFEST_LIMIT:
                    raise BadGolden(f"{far.place}/{NAME} is over {MANIFEST_LIMIT:,} bytes: refused")
        except FileNotFoundError:
            return None
    return bytes(data)


def _parsed(manifest: bytes, place: str) -> list[Entry]:
    """The entries of a manifest from elsewhere."""
    try:
        content = json.loads(manifest)
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r:.60}, not {SCHEMA!r}")
        goldens = list(content["goldens"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        line = str(error)[:200]
        raise BadGolden(f"{place}/{NAME} is not a manifest of goldens: {line}") from None
    return _checked(goldens, place)


def _checked(goldens: Iterable[Any], place: str) -> list[Entry]:
    """The entries, once all of them are fit to be shared: names, hashes and sizes."""
    seen: set[str] = set()
    for entry in goldens:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in _TEXTS):
            problem = f"has an entry without one of {', '.join(_TEXTS)}"
        elif not _FILE.fullmatch(entry["file"]):
            problem = f"names {entry['file']!r:.80}, which is not traces/NAME.safetensors"
        elif entry["file"].casefold() in seen:
            problem = f"names {entry['file']!r} twice"
        elif not _SHA256.fullmatch(entry["sha256"]):
            problem = f"has no sha256 of {entry['file']!r}"
        elif type(size := entry.get("bytes")) is not int or not 0 < size <= GOLDEN_LIMIT:
            problem = f"has no size of {entry['file']!r} (1 to {GOLDEN_LIMIT:,} bytes)"
        else:
            seen.add(entry["file"].casefold())
            continue
        raise BadGolden(f"{place}/{NAME} {problem}: it is refused; record and push it anew")
    return list(goldens)


def _of_model(goldens: list[Entry], model: str | None, place: str) -> list[Entry]:
    found = [entry for entry in goldens if model is None or entry["model"] == Path(model).name]
    if not found:
        models = sorted({entry["model"] for entry in goldens})
        what = "golden" if model is None else f"golden of model {model!r}"
        raise BadGolden(f"no {what} in {place} (models there: {models!r:.200}): check --model")
    return found


def _check_owners(goldens: list[Entry], known: list[Entry], place: str) -> None:
    """No golden takes the place of one that was recorded from other weights."""
    owners = {entry["file"].casefold(): entry for entry in known}
    for entry in goldens:
        other = owners.get(entry["file"].casefold(), entry)
        if (other["file"], other["weights"]) != (entry["file"], entry["weights"]):
            raise BadGolden(
                f"{place} has {other['file']} of other weights ({other['weights'][:12]!r}, not "
                f"{entry['weights'][:12]!r}): use another folder or repository, or remove it there"
            )


def _merged(manifest: bytes | None, goldens: list[Entry]) -> bytes:
    """The far manifest with these entries in it."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / NAME
        if manifest is not None:
            path.write_bytes(manifest)
        for entry in goldens:
            add_entry(path.parent, entry)
        return path.read_bytes()


def _pieces(far: Source, file: str, offset: int) -> Pieces:
    with explained(f"{far.place}/{file}"):
        yield from far.pieces(file, offset)


def _is_whole(path: Path, entry: Entry) -> bool:
    right = path.is_file() and path.stat().st_size == entry["bytes"]
    return right and _sha256(path) == entry["sha256"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
