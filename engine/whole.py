"""Files that are whole or not there. Nothing here knows what is in them."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`, of the same suffix, whose file takes its place at the end.

    After an error there is no such file, and `path` is as it was. An OSError names `path`.
    """
    # In the same folder, so that the replacement is a rename.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError, which names it."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
