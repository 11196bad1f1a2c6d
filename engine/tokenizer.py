"""Text to token ids and back, as transformers' AutoTokenizer does it, without transformers.

The tokenizers library does the work, on a tokenizer.json or on a SentencePiece tokenizer.model
that `tokenizer_model.py` respells. What a tokenizer class changes about its file stands in
`tokenizer_pipelines.py`. Nothing here knows a model, or runs code that comes with one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from .errors import TokenizerMismatch
from .files import ModelFiles, read_json
from .tokenizer_model import as_json, template
from .tokenizer_pipelines import (
    add_tokens,
    as_transformers_reads,
    content,
    rebuilding_class,
)

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer:
    """Encode, decode, and the ids that begin and end a text.

    `vocab_size` counts the tokens, `max_id` is the highest id that text can become; added tokens
    are in both.
    """

    def __init__(self, backend: Any, bos_id: int | None, eos_ids: Iterable[int]) -> None:
        """`backend` is a `tokenizers.Tokenizer`."""
        self._backend = backend
        vocab = backend.get_vocab(with_added_tokens=True)
        inserted = backend.encode("").ids  # by the post-processor, which may know ids of its own
        self.vocab_size = len(vocab)
        self.max_id = max((*vocab.values(), *inserted), default=-1)
        self.bos_id = bos_id
        self.eos_ids = frozenset(eos_ids)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the tokenizer adds of itself, such as BOS.

        Raises TokenizerMismatch when the tokenizer has no token for some of it.
        """
        try:
            return self._backend.encode(text, add_special_tokens=special).ids
        except Exception as cause:
            raise TokenizerMismatch(
                f"the tokenizer cannot encode {text[:40]!r} ({_line(cause)}): change the prompt, "
                "or give it as token ids"
            ) from None

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; ids without a token are passed over."""
        known = [int(each) for each in ids if 0 <= each <= self.max_id]
        return self._backend.decode(known, skip_special_tokens=skip_special)

    def stream(self, *, skip_special: bool = False) -> StreamDecoder:
        """A decoder that takes one id at a time."""
        return StreamDecoder(
            lambda ids: self.decode(ids, skip_special=skip_special), self._backend.id_to_token
        )


class StreamDecoder:
    """Text piece by piece; the pieces together are what `decode` gives at once.

    A piece is held back while the next id may still change it: after half a character, and within
    a run of byte tokens, which decodes as a whole or not at all. What was given out last is
    decoded again with what follows, because a decoder treats the beginning of a text differently.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], token: Callable[[int], str | None]
    ) -> None:
        self._decode = decode
        self._token = token
        self._ids: list[int] = []  # the last ids given out, then those held back
        self._given = 0  # how many of them were given out
        self._text = ""  # their text
        self._in_bytes = False  # whether the last text came from byte tokens

    def add(self, id: int) -> str:
        """The text that is certain now; '' while a character is incomplete."""
        self._ids.append(int(id))
        if _BYTE.fullmatch(self._token(self._ids[-1]) or ""):
            self._in_bytes = True
            return ""
        if self._in_bytes and not self._decode(self._ids[-1:]):
            return ""  # a token without text does not end the run
        self._in_bytes = False
        text = self._decode(self._ids)
        if text.endswith("\ufffd") or not text.startswith(self._text):
            return ""
        return self._give(text)

    def finish(self) -> str:
        """Whatever was held back."""
        return self._give(self._decode(self._ids))

    def _give(self, text: str) -> str:
        new = text[len(self._text) :]
        if new:
            self._ids = self._ids[self._given :]
            self._given = len(self._ids)
            self._text = self._decode(self._ids)
        return new


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """The tokenizer of a model. Raises TokenizerMismatch when none is there or readable."""
    folder = files.folder
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        backend, settings = _backend(folder / "tokenizer.json", settings, files.config)
    elif (folder / "tokenizer.model").is_file():
        backend, settings = _backend(folder / "tokenizer.model", settings, files.config)
    else:
        raise TokenizerMismatch(
            f"{folder} has neither tokenizer.json nor tokenizer.model: put the model's tokenizer "
            "there, or give prompts as token ids"
        )
    bos: list[Any] = [_named_id(backend, settings, "bos_token")]
    eos: list[Any] = [_named_id(backend, settings, "eos_token")]
    for config in (files.config, _optional(folder / "generation_config.json")):
        bos.append(config.get("bos_token_id"))
        stated = config.get("eos_token_id")
        eos += stated if isinstance(stated, list) else [stated]
    return Tokenizer(backend, next(filter(_is_id, bos), None), filter(_is_id, eos))


def check_fits(max_id: int, rows: int, where: str | Path) -> None:
    """Raise TokenizerMismatch if a text can become an id without embedding row.

    Rows without a token are normal: embeddings are padded.
    """
    if max_id >= rows:
        raise TokenizerMismatch(
            f"the tokenizer of {where} reaches id {max_id}, and the embedding has "
            f"{rows} rows, the last for id {rows - 1}: tokenizer and weights are not "
            "of the same model"
        )


def _backend(
    path: Path, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """The `tokenizers.Tokenizer` of a file, and the settings with what the file adds to them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    converted = path.suffix == ".model"
    raw = {} if converted else read_json(path, TokenizerMismatch)
    try:
        if converted:
            kind = rebuilding_class(raw, settings, config)
            raw, named = as_json(path, rebuilt=kind is not None)
            stated = settings.get("added_tokens_decoder") or {}
            own = {each["id"]: each for each in raw["added_tokens"]}
            own |= {int(id): each for id, each in stated.items()}
            settings = {**({} if kind else named), **settings, "added_tokens_decoder": own}
        whole, settings = as_transformers_reads(raw, settings, config)
        backend = Backend.from_str(json.dumps(whole))
        add_tokens(backend, settings, raw.get("added_tokens") or [])
        if converted:
            ends = [
                (content(settings.get(name)) or "", _named_id(backend, settings, name))
                for name in ("bos_token", "eos_token")
            ]
            single, special = template(settings, ends)
            backend.post_processor = TemplateProcessing(single=single, special_tokens=special)
    except Exception as cause:
        raise TokenizerMismatch(
            f"{path} is not a readable tokenizer ({_line(cause)}): fetch it again"
        ) from None
    backend.no_truncation()
    backend.no_padding()
    return backend, settings


def _named_id(backend: Any, settings: Mapping[str, Any], name: str) -> int | None:
    return backend.token_to_id(content(settings.get(name)) or "")


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what older transformers kept in special_tokens_map.json."""
    settings = _optional(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:
        return settings
    return {**settings, **_optional(folder / "special_tokens_map.json")}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, TokenizerMismatch) if path.is_file() else {}


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _line(cause: BaseException) -> str:
    return " ".join(str(cause).split())[:200]
