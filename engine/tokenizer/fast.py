"""tokenizer.json through the tokenizers library, read as transformers reads it.

Where no class rebuilds the pipeline the file goes to the library as it is, unparsed: a large
vocabulary takes Python longer to read than the library.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import TokenizerMismatch
from ..files import read_json
from .building import build
from .classes import rebuilding_class, rebuilt, with_defaults
from .settings import Settings


def read_fast(path: Path, settings: Settings) -> tuple[Any, Settings]:
    """The `tokenizers.Tokenizer` of a file, and the settings with what class and file add."""
    from tokenizers import Tokenizer

    kind = rebuilding_class(b'"ByteLevel"' in path.read_bytes(), settings)
    if kind is None:
        backend = Tokenizer.from_file(str(path))
        padding = (backend.padding or {}).get("pad_token")
        return backend, with_defaults(None, settings, padding)
    raw = read_json(path, TokenizerMismatch)
    settings = with_defaults(kind, settings, (raw.get("padding") or {}).get("pad_token"))
    backend = build(rebuilt(kind, raw, settings))
    if settings.added is None:
        listed = {each["id"]: each for each in raw.get("added_tokens") or []}
        settings = replace(settings, added={**settings.older, **listed})
    return backend, settings
