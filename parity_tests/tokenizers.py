"""Real tokenizers for all suites: trained here, in a second, from the standard library's text; and
those that mistral-common carries.

A kind gives the files of a model's folder, tokenizer_config.json included.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from engine.files import ModelFiles

CORPUS = [*Path(argparse.__file__).read_text().splitlines(), "héllo wörld don't I'LL 日本語"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(prefix: bool = False) -> Tokenizer:
    """As llama 3: byte-level BPE, BOS by template; with `prefix` as RoBERTa: a space in front."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|bos|>", "<|endoftext|>"]
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return with_bos(backend, "<|bos|>")


def unigram() -> Tokenizer:
    """SentencePiece-style, with byte fallback."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    backend.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    raw = json.loads(backend.to_str())
    raw["model"]["vocab"] += [[byte, -20.0] for byte in BYTES]
    raw["model"]["byte_fallback"] = True
    backend = Tokenizer.from_str(json.dumps(raw))
    backend.decoder = spaces_and_bytes(decoders.Strip(" ", 1, 0))
    return with_bos(backend, "<bos>")


def gemma_like() -> Tokenizer:
    """As gemma: BPE over ▁, with byte fallback and no space in front."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *BYTES]
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False),
    )
    backend.decoder = spaces_and_bytes()
    return with_bos(backend, "<bos>")


def metaspace() -> Tokenizer:
    """Unigram whose decoder is Metaspace itself."""
    backend = unigram()
    backend.decoder = decoders.Metaspace()
    return backend


def word_piece() -> Tokenizer:
    """As BERT: words lower-cased and cut, ## in front of what goes on, [CLS] and [SEP] around."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False),
    )
    backend.decoder = decoders.WordPiece(cleanup=False)
    ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    return backend


def many_added() -> Tokenizer:
    """Byte-level BPE with added tokens that begin, hold and follow each other, of every flag."""
    backend = byte_level()
    backend.add_tokens(
        [
            *(AddedToken(text, normalized=False) for text in ("<a>", "<a><b>", "<b>", "a>", "<")),
            AddedToken("word", single_word=True),
            AddedToken("  "),
            AddedToken("    "),
            AddedToken("\n\n", normalized=False),
            AddedToken("left", lstrip=True),
            AddedToken("right", rstrip=True),
            AddedToken("<both>", lstrip=True, rstrip=True, special=True),
            AddedToken("ÅÅ", normalized=True),
            AddedToken("👩‍🔬"),
            *(AddedToken(f"<|reserved_{i}|>", special=True) for i in range(20)),
            *(AddedToken(f"<extra_{i}>") for i in range(20)),
        ]
    )
    backend.normalizer = normalizers.NFC()
    return backend


def spaces_and_bytes(*more: Any) -> Any:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more]
    return decoders.Sequence(steps)


def with_bos(backend: Tokenizer, bos: str) -> Tokenizer:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend


_FAST: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
_LEVEL = {**_FAST, "bos_token": "<|bos|>", "eos_token": "<|endoftext|>"}
_PIECE = {**_FAST, "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
_WORD = {
    **_FAST,
    **{f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")},
}
KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any]]] = {
    "byte_level": (byte_level, _LEVEL),
    "byte_level_prefix": (lambda: byte_level(prefix=True), _LEVEL),
    "unigram": (unigram, _PIECE),
    "gemma_like": (gemma_like, _PIECE),
    "metaspace": (metaspace, _PIECE),
    "word_piece": (word_piece, _WORD),
    "word_piece_cleaned": (word_piece, {**_WORD, "clean_up_tokenization_spaces": True}),
    "many_added": (many_added, {**_LEVEL, "extra_special_tokens": ["<|late|>"]}),
}
_SPM = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
_SPM |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_INSTRUCT = "mistral_instruct_tokenizer"
# Of mistral-common: its file, our name for it, the type of its model, tokenizer_config.json.
MISTRAL: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "mistral_v1": ("tokenizer.model.v1", "tokenizer.model", "llama", _SPM),
    "mistral_v3": (f"{_INSTRUCT}_240323.model.v3", "tokenizer.model", "mistral", _SPM),
    "mistral_v7": (f"{_INSTRUCT}_241114.model.v7", "tokenizer.model", "mistral", {}),
    "tekken": ("tekken_240911.json", "tekken.json", "mistral", _SPM | _FAST),
}


@functools.cache
def trained(kind: str) -> str:
    """The tokenizer.json of a kind, trained once."""
    return KINDS[kind][0]().to_str()


def files_of(
    path: Path, config: dict[str, Any] | None = None, **others: dict[str, Any]
) -> ModelFiles:
    """Write config.json and other JSON files into a folder that may hold a tokenizer."""
    config = {"model_type": "llama", **(config or {})}
    for name, value in {"config": config, **others}.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return ModelFiles(str(path), path, (), None, config)


def write_kind(path: Path, name: str, tekken_tokens: int | None = None) -> ModelFiles:
    """A model's folder with the tokenizer of a kind, or of mistral-common, and no weights.

    `tekken_tokens` leaves so many of tekken's 130,000 sequences, which takes a tenth of the time.
    """
    if name in KINDS:
        (path / "tokenizer.json").write_text(trained(name))
        return files_of(path, tokenizer_config=KINDS[name][1])
    source, target, model_type, settings = MISTRAL[name]
    data = (mistral_data() / source).read_bytes()
    if target == "tekken.json":
        data = json.dumps(with_special_tokens(json.loads(data), tekken_tokens)).encode()
    (path / target).write_bytes(data)
    others = {"tokenizer_config": settings} if settings else {}
    return files_of(path, {"model_type": model_type}, **others)


def with_special_tokens(raw: dict[str, Any], tokens: int | None = None) -> dict[str, Any]:
    """tekken.json as later versions have it, special tokens listed: transformers reads no other."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    known = Tekkenizer.DEPRECATED_SPECIAL_TOKENS
    raw["special_tokens"] = [{**each, "token_str": str(each["token_str"].value)} for each in known]
    if tokens is not None:
        special = raw["config"]["default_num_special_tokens"]
        raw["config"]["default_vocab_size"] = tokens + special
        raw["vocab"] = raw["vocab"][:tokens]
    return raw


def has_mistral() -> bool:
    return importlib.util.find_spec("mistral_common") is not None


def mistral_data() -> Path:
    import mistral_common

    return Path(mistral_common.__file__).parent / "data"


def sentencepiece_model(model_type: str, prefix: bool) -> bytes:
    """A SentencePiece model of 600 pieces."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(filter(str.strip, CORPUS)),
        model_writer=model,
        vocab_size=600,
        model_type=model_type,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=["<extra>"],
        minloglevel=5,
    )
    return model.getvalue()
