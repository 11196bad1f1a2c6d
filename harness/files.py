"""JSON that a diff can be read of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def json_with_rows(head: Mapping[str, Any], key: str, rows: Sequence[Any]) -> bytes:
    """A JSON object of what `head` holds and, under `key`, a long list with a line for each row."""
    lines = ",\n  ".join(map(json.dumps, rows))
    return f'{json.dumps(head, indent=1)[:-2]},\n "{key}": [\n  {lines}\n ]\n}}\n'.encode()
