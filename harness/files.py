"""Files that are whole or not there, and JSON that a diff can be read of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the file, then move over it. Raises OSError, which names the file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def json_with_rows(head: Mapping[str, Any], key: str, rows: Sequence[Any]) -> bytes:
    """A JSON object of what `head` holds and, under `key`, a long list with a line for each row."""
    lines = ",\n  ".join(map(json.dumps, rows))
    return f'{json.dumps(head, indent=1)[:-2]},\n "{key}": [\n  {lines}\n ]\n}}\n'.encode()
