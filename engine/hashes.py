"""sha256 of files, remembered, so that weights of many gigabytes are read through once.

What is remembered counts for a file of the same path, device, inode, size, and times of its last
change to the nanosecond: of its content and, which no program can set back, of the file itself. A
file changed within the last seconds is not remembered, because it could change again within one
tick of its file system's clock. A record that is unreadable is as none; one that cannot be written
costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .console import remark
from .errors import EngineError
from .userdata import certificate_folder
from .whole import write_whole

RECORD = ".hashes"
SETTLED = 3.0  # seconds; FAT's clock ticks every two
PATIENCE = 1.0  # seconds without a word


def sha256_of(paths: Iterable[Path]) -> dict[Path, str]:
    """The sha256 of files, read where it is not remembered. Raises EngineError."""
    record = _read()
    found, new = {}, {}
    for path in paths:
        key = str(path.resolve())
        state = _state(path)
        if state is None:
            raise EngineError(f"{path} cannot be read: it is not there any more")
        if record.get(key, [None])[0] == state:
            found[path] = record[key][1]
            continue
        with _told(f"reading {path} for its sha256, which is remembered"):
            found[path] = _digest(path)
        if _state(path) != state:
            raise EngineError(f"{path} changes while it is read: wait until it is complete")
        if time.time() - max(state[-2:]) / 1e9 > SETTLED:
            new[key] = [state, found[path]]
    if new:
        _remember(new)
    return found


def known_sha256(path: Path) -> str | None:
    """The sha256 of a file where it is remembered; the file is not read."""
    state, entry = _state(path), _read().get(str(path.resolve()))
    return entry[1] if entry and state is not None and entry[0] == state else None


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what is being done where it takes long."""
    timer = threading.Timer(PATIENCE, remark, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as cause:
        raise EngineError(f"{path} cannot be read ({cause.strerror}): check the file") from None


def _state(path: Path) -> list[int] | None:
    """What changes when a file does; None where there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read() -> dict[str, list]:
    try:
        record = json.loads((certificate_folder() / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    entries = record.items() if isinstance(record, dict) else ()
    return {path: entry for path, entry in entries if _is_entry(entry)}


def _is_entry(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)


def _remember(new: dict[str, list]) -> None:
    """Add to the record, without what is gone. Of two writers at once the later one wins."""
    record = {path: entry for path, entry in _read().items() if os.path.exists(path)}
    data = json.dumps({**record, **new}, indent=1).encode()
    with contextlib.suppress(OSError):
        certificate_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(certificate_folder() / RECORD, data)
