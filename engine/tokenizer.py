"""Text to token ids and back, as transformers' AutoTokenizer does it, without transformers.

A tokenizer is read from tokenizer.json (the tokenizers library) or from a SentencePiece
tokenizer.model, each through a codec. What a tokenizer class changes about its file stands in
`tokenizer_pipelines.py`. Nothing here knows a model, or runs code that comes with one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from .errors import TokenizerMismatch
from .files import ModelFiles, read_json
from .tokenizer_pipelines import add_tokens, as_transformers_reads, content

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class _Codec(Protocol):
    """What a tokenizer file's own library does; both codecs below have this shape."""

    vocab_size: int
    max_id: int
    named: dict[str, str | None]  # bos_token, eos_token

    def encode(self, text: str, special: bool) -> list[int]: ...
    def decode(self, ids: list[int], skip_special: bool) -> str: ...
    def id(self, token: str) -> int | None: ...
    def token(self, id: int) -> str | None: ...


class Tokenizer:
    """Encode, decode, and the ids that begin and end a text.

    `vocab_size` counts the tokens, `max_id` is the highest id that text can become; added tokens
    are in both.
    """

    def __init__(self, codec: _Codec, bos_id: int | None, eos_ids: Iterable[int]) -> None:
        self._codec = codec
        self.vocab_size = codec.vocab_size
        self.max_id = codec.max_id
        self.bos_id = bos_id
        self.eos_ids = frozenset(eos_ids)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the tokenizer adds of itself, such as BOS."""
        return self._codec.encode(text, special)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of token ids; ids without a token are passed over."""
        return self._codec.decode([int(each) for each in ids], skip_special)

    def stream(self, *, skip_special: bool = False) -> StreamDecoder:
        """A decoder that takes one id at a time."""
        decode = lambda ids: self._codec.decode(ids, skip_special)
        return StreamDecoder(decode, self._codec.token)


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

    def add(self, id: int) -> str:
        """The text that is certain now; '' while a character is incomplete."""
        self._ids.append(int(id))
        if _BYTE.fullmatch(self._token(self._ids[-1]) or ""):
            return ""
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
    """The tokenizer of a model. Raises TokenizerMismatch when there is none, or it is unreadable."""
    folder = files.folder
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        codec = _JsonCodec(folder / "tokenizer.json", settings, files.config)
    elif (folder / "tokenizer.model").is_file():
        codec = _SentencePieceCodec(folder / "tokenizer.model", settings)
    else:
        raise TokenizerMismatch(
            f"{folder} has neither tokenizer.json nor tokenizer.model: put the model's tokenizer "
            "there, or give prompts as token ids"
        )
    bos: list[Any] = [codec.id(codec.named.get("bos_token") or "")]
    eos: list[Any] = [codec.id(codec.named.get("eos_token") or "")]
    for config in (files.config, _optional(folder / "generation_config.json")):
        bos.append(config.get("bos_token_id"))
        stated = config.get("eos_token_id")
        eos += stated if isinstance(stated, list) else [stated]
    return Tokenizer(codec, next(filter(_is_id, bos), None), filter(_is_id, eos))


def check_fits(tokenizer: Tokenizer, spec_vocab: int, where: str | Path) -> None:
    """Raise TokenizerMismatch if a text can become an id without embedding row.

    Rows without a token are normal: embeddings are padded.
    """
    if tokenizer.max_id >= spec_vocab:
        raise TokenizerMismatch(
            f"the tokenizer of {where} reaches id {tokenizer.max_id}, and the embedding has "
            f"{spec_vocab} rows, the last for id {spec_vocab - 1}: tokenizer and weights are not "
            "of the same model"
        )


class _JsonCodec:
    """tokenizer.json through the tokenizers library."""

    def __init__(self, path: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer as Backend

        raw = read_json(path, TokenizerMismatch)
        try:
            whole, settings = as_transformers_reads(raw, settings, config)
            self._backend = Backend.from_str(json.dumps(whole))
            add_tokens(self._backend, settings, raw.get("added_tokens") or [])
        except Exception as cause:  # noqa: BLE001 - what the library raises is a bare Exception
            raise _unreadable(path, cause) from None
        self._backend.no_truncation()
        self._backend.no_padding()
        self.named = {k: content(settings.get(k)) for k in ("bos_token", "eos_token")}
        vocab = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = len(vocab)
        self.max_id = max((*vocab.values(), *_template_ids(raw.get("post_processor"))), default=-1)

    def encode(self, text: str, special: bool) -> list[int]:
        return self._backend.encode(text, add_special_tokens=special).ids

    def decode(self, ids: list[int], skip_special: bool) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special)

    def id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def token(self, id: int) -> str | None:
        return self._backend.id_to_token(id)


def _template_ids(processor: Any) -> Iterable[int]:
    """Ids that a post-processor inserts."""
    if not isinstance(processor, dict):
        return
    for each in processor.get("processors") or ():
        yield from _template_ids(each)
    for token in (processor.get("special_tokens") or {}).values():
        yield from token.get("ids", ())


class _SentencePieceCodec:
    """tokenizer.model through the sentencepiece library.

    Pieces become text by the rules above; BOS and EOS are added where tokenizer_config.json says
    so.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        from tokenizers import decoders

        self._first = _sentencepiece(path)
        # What follows a special token gets no space in front: normalizer_spec.add_dummy_prefix is
        # false. Protocol buffers merge when concatenated; these are fields 3 and 3.
        self._later = _sentencepiece(path, b"\x1a\x02\x18\x00")
        self._pieces = [self._first.id_to_piece(i) for i in range(self._first.get_piece_size())]
        self._special = {
            piece: i for i, piece in enumerate(self._pieces) if self._first.is_control(i)
        }
        for id, entry in (settings.get("added_tokens_decoder") or {}).items():
            self._special[content(entry)] = int(id)
        self._by_id = dict(enumerate(self._pieces)) | {i: t for t, i in self._special.items()}
        self._by_token = {token: i for i, token in self._by_id.items()}
        longest = sorted(self._special, key=len, reverse=True)
        self._cut = re.compile("(" + "|".join(map(re.escape, longest)) + ")") if longest else None
        prefixed = self._first.encode("a", out_type=str)[0].startswith("▁")
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        self._decoder = decoders.Sequence(
            [*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps
        )
        own = {"bos_token": self._first.bos_id(), "eos_token": self._first.eos_id()}
        self.named = {k: self._pieces[i] for k, i in own.items() if i >= 0}
        self.named |= {k: content(settings[k]) for k in own if settings.get(k)}
        ends = [("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")]
        self._bos, self._eos = (
            [self._by_token[self.named[name]]]
            if settings.get(flag) and self.named.get(name) in self._by_token
            else []
            for flag, name in ends
        )
        self.vocab_size = len(self._by_id)
        self.max_id = max(self._by_id)

    def encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self._cut.split(text) if self._cut else [text]):
            if i % 2:
                ids.append(self._special[part])
            elif part:
                ids += (self._later if i else self._first).encode(part)
        return [*self._bos, *ids, *self._eos] if special else ids

    def decode(self, ids: list[int], skip_special: bool) -> str:
        dropped = set(self._special.values()) if skip_special else ()
        pieces = [self._by_id[i] for i in ids if i in self._by_id and i not in dropped]
        return self._decoder.decode(pieces)

    def id(self, token: str) -> int | None:
        return self._by_token.get(token)

    def token(self, id: int) -> str | None:
        return self._by_id.get(id)


def _sentencepiece(path: Path, patch: bytes = b"") -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise TokenizerMismatch(
            f"{path} needs the sentencepiece library: pip install sentencepiece"
        ) from None
    try:
        return SentencePieceProcessor(model_proto=path.read_bytes() + patch)
    except (RuntimeError, OSError) as cause:
        raise _unreadable(path, cause) from None


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


def _unreadable(path: Path, cause: BaseException) -> TokenizerMismatch:
    what = " ".join(str(cause).split())[:200]
    return TokenizerMismatch(f"{path} is not a readable tokenizer ({what}): fetch it again")
