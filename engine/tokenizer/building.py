"""A `tokenizers.Tokenizer` from tokenizer.json as an object, which is not parsed a second time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def build(raw: Mapping[str, Any]) -> Any:
    """The tokenizer; its model is a BPE or Unigram. Raises what the tokenizers library raises."""
    from tokenizers import Tokenizer, models

    settings = dict(raw["model"])
    kind, vocab = settings.pop("type"), settings.pop("vocab")
    if kind == "BPE":
        pairs = settings.pop("merges")
        merges: list[Any] = [tuple(p.split(" ")) if isinstance(p, str) else tuple(p) for p in pairs]
        model = models.BPE(vocab, merges, **settings)
    else:
        model = models.Unigram([tuple(piece) for piece in vocab], **settings)
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    backend = Tokenizer.from_str(json.dumps({**raw, "model": empty, "added_tokens": []}))
    backend.model = model
    listed = sorted(raw.get("added_tokens") or [], key=lambda each: each["id"])
    backend.add_tokens([added_token(token) for token in listed])
    return backend


def added_token(token: Any) -> Any:
    """A `tokenizers.AddedToken` of a text, which is taken for special, or of an object."""
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=True)
    return AddedToken(**{key: token[key] for key in _FIELDS if key in token})
