"""A SentencePiece tokenizer.model in the spelling of a tokenizer.json.

transformers 5 converts the file and runs it through the tokenizers library, which splits some
texts differently from SentencePiece itself (one that begins with spaces, for instance). What the
original does is what counts, so does this module, with neither sentencepiece nor protobuf: of the
protocol buffer (sentencepiece/src/sentencepiece_model.proto) it reads the few fields it needs.
Sources: SentencePieceExtractor, SpmConverter and generate_merges of transformers 5.23.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .building import build
from .classes import rebuilding_class, rebuilt, with_defaults
from .settings import Settings

_UNIGRAM = 1  # TrainerSpec.ModelType
_CONTROL, _USER_DEFINED = 3, 4  # ModelProto.SentencePiece.Type


def read_sentencepiece(path: Path, settings: Settings) -> tuple[Any, Settings]:
    """The `tokenizers.Tokenizer` of a file, and the settings with what class and file add to them.

    Raises ValueError when the file is not a SentencePiece model.
    """
    kind = rebuilding_class(False, settings)
    raw, named = as_json(path, rebuilt=kind is not None)
    own = {each["id"]: each for each in raw["added_tokens"]}
    settings = replace(settings, added=own | {**settings.older, **(settings.added or {})})
    settings = with_defaults(kind, settings)
    if kind is None:
        settings = replace(settings, stated={**named, **settings.stated})
    return build(raw if kind is None else rebuilt(kind, raw, settings)), settings


def as_json(path: Path, *, rebuilt: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """tokenizer.json of a tokenizer.model, and its special tokens by name.

    `rebuilt`: a tokenizer class will replace the pipeline, and takes any vocabulary for BPE.
    """
    proto = _fields(path.read_bytes())
    trainer, normalizer = (_fields(proto.get(key, [b""])[-1]) for key in (2, 3))
    pieces = [_piece(_fields(data)) for data in proto.get(1, [])]
    if not pieces:
        raise ValueError("it has no pieces")
    vocab = {text: i for i, (text, _, _) in enumerate(pieces)}

    def last(key: int, default: Any) -> Any:
        return trainer.get(key, [default])[-1]

    unknown = last(45, b"<unk>").decode()
    falls_back = bool(last(35, 0))
    if rebuilt or last(3, _UNIGRAM) != _UNIGRAM:
        model = {"type": "BPE", "vocab": vocab, "merges": list(_merges(vocab))}
        model |= {"unk_token": unknown, "fuse_unk": True, "byte_fallback": falls_back}
    else:
        scored = [[text, score] for text, score, _ in pieces]
        model = {"type": "Unigram", "vocab": scored, "unk_id": last(40, 0)}
        model |= {"byte_fallback": falls_back}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    charsmap = normalizer.get(2, [b""])[-1]
    first = [{"type": "Precompiled", "precompiled_charsmap": _base64(charsmap)}] if charsmap else []
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}] if falls_back else []
    raw = {
        "version": "1.0",
        "added_tokens": [
            _added(i, text, kind == _CONTROL)
            for i, (text, _, kind) in enumerate(pieces)
            if kind in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "Sequence", "normalizers": [*first, space]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }
    ids = {"unk": (40, 0, 45, "<unk>"), "bos": (41, 1, 46, "<s>"), "eos": (42, 2, 47, "</s>")}
    named = {
        f"{name}_token": last(piece, text.encode()).decode()
        for name, (id, default, piece, text) in ids.items()
        if last(id, default) < 1 << 31  # -1, which means none, reads as 2**64 - 1
    }
    return raw, named


def _piece(fields: Mapping[int, list[Any]]) -> tuple[str, float, int]:
    (score,) = struct.unpack("<f", fields.get(2, [bytes(4)])[-1])
    return fields.get(1, [b""])[-1].decode(), score, fields.get(3, [1])[-1]


def _merges(vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Every way to make a piece of two others: in the order of ids, the shorter beginning first."""
    for whole in vocab:
        for cut in range(1, len(whole)):
            if whole[:cut] in vocab and whole[cut:] in vocab:
                yield whole[:cut], whole[cut:]


def _added(id: int, text: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": text, **flags, "special": special}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _fields(data: bytes) -> dict[int, list[Any]]:
    """Field number -> values of a protocol buffer: integers, or bytes that are not yet read.

    https://protobuf.dev/programming-guides/encoding
    """
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size, at = (
                _varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}.get(key & 7, len(data)), at)
            )
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("it is truncated, or no protocol buffer")
        found.setdefault(key >> 3, []).append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
        shift += 7
    raise ValueError("it is truncated, or no protocol buffer")
