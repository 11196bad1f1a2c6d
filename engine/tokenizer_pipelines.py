"""How transformers 5.23 reads a tokenizer.json: which parts it keeps, and which it replaces.

Some tokenizer classes rebuild the pipeline (normalizer, pre-tokenizer, decoder) around the file's
vocabulary, merges and post-processor, whatever the file says; all add the special tokens that the
configuration names. What they put there stands here as data, in tokenizer.json's own spelling.
Sources: transformers/models/{auto,llama,gemma,gpt2,qwen2}/tokenization_*.py and
tokenization_utils_tokenizers.py. `add_bos_token` plays no part: where there is a tokenizer.json,
its post-processor alone adds BOS.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# In the order in which they get ids where the vocabulary has none for them.
_NAMED = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_END = "<|endoftext|>"

# Special tokens of the classes that rebuild, where the configuration does not name them.
_DEFAULTS: dict[str, dict[str, str | None]] = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GemmaTokenizer": {
        "unk_token": "<unk>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "GPT2Tokenizer": {
        "unk_token": _END,
        "bos_token": _END,
        "eos_token": _END,
        "pad_token": None,
    },
    "Qwen2Tokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
}

# The class of a model type, where AutoTokenizer has one.
_CLASSES = {
    "gemma2": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "mistral": "TokenizersBackend",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
}
_OVERRULED = ("qwen2",)  # model types whose own tokenizer_class AutoTokenizer does not believe


def rebuilding_class(
    raw: Mapping[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any]
) -> str | None:
    """The class that rebuilds the pipeline; None where the file is taken as it is."""
    stated = settings.get("tokenizer_class") or config.get("tokenizer_class")
    stated = stated.removesuffix("Fast") if isinstance(stated, str) else None
    model_type = config.get("model_type")
    own = _CLASSES.get(model_type) if isinstance(model_type, str) else None
    if stated == "LlamaTokenizer" and model_type not in _OVERRULED:
        parts = json.dumps([raw.get("pre_tokenizer"), raw.get("decoder")])
        if '"ByteLevel"' in parts:  # llama 3 calls itself LlamaTokenizer too
            return None
    if own == "TokenizersBackend":
        return None
    clash = own is not None and stated is not None and own != stated
    kind = own if clash and model_type in _OVERRULED else stated or own
    return kind if kind in _DEFAULTS else None


def as_transformers_reads(
    raw: dict[str, Any], settings: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """tokenizer.json and tokenizer_config.json after what the tokenizer class does to them."""
    kind = rebuilding_class(raw, settings, config)
    padding = raw.get("padding") or {}
    defaults = {"pad_token": padding.get("pad_token"), **_DEFAULTS.get(kind or "", {})}
    settings = {**defaults, **settings}
    if kind is None:
        return raw, settings
    model = raw.get("model") or {}
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):  # Unigram: [piece, score] in the order of the ids
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    bpe = {"type": "BPE", "vocab": vocab, "merges": model.get("merges") or []}
    pipeline = _PIPELINES[kind](settings)
    model = {**bpe, **pipeline.pop("model", {})}
    return {**raw, **pipeline, "model": model, "added_tokens": []}, settings


def add_tokens(backend: Any, settings: Mapping[str, Any], listed: list[dict[str, Any]]) -> None:
    """Add the tokens a configuration names, in the order in which transformers gives them ids.

    `listed` are tokenizer.json's own added tokens, which count where tokenizer_config.json has no
    `added_tokens_decoder`.
    """
    from tokenizers import AddedToken

    stated = settings.get("added_tokens_decoder")
    table = stated.items() if stated is not None else ((each["id"], each) for each in listed)
    fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = {
        int(id): AddedToken(**{key: each[key] for key in fields if key in each})
        for id, each in table
    }
    present = backend.get_added_tokens_decoder().values()
    known = {repr(token) for token in present}
    new = [tokens[id] for id in sorted(tokens) if repr(tokens[id]) not in known]
    contents = {token.content for token in (*present, *new)}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    extra = extra.values() if isinstance(extra, dict) else extra
    special = [key for key in settings if key.endswith("_token") and key not in _NAMED]
    named = [settings.get(key) for key in (*_NAMED, *special)]
    for text in filter(None, map(content, (*named, *extra))):
        if text not in contents:
            contents.add(text)
            new.append(AddedToken(text, special=True, normalized=False))
    backend.add_tokens(new)


def content(token: Any) -> str | None:
    """A token's text; configurations spell it as a string or as an object."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


# --- the pipelines

_SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_BYTES = ({"type": "ByteFallback"}, {"type": "Fuse"})
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _llama(settings: Mapping[str, Any]) -> dict[str, Any]:
    prefix = settings.get("add_prefix_space") is not False
    scheme = "always" if settings.get("legacy") else "first"
    return {
        "model": {"fuse_unk": True, "byte_fallback": True},
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": scheme if prefix else "never",
            "split": False,
        },
        "decoder": _sequence("decoders", _SPACES, *_BYTES, *([_STRIP] if prefix else [])),
    }


def _gemma(settings: Mapping[str, Any]) -> dict[str, Any]:
    unknown = content(settings.get("unk_token"))
    return {
        "model": {"fuse_unk": True, "byte_fallback": True, "unk_token": unknown},
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": _split({"String": " "}, "MergedWithPrevious"),
        "decoder": _sequence("decoders", _SPACES, *_BYTES),
    }


def _gpt2(settings: Mapping[str, Any]) -> dict[str, Any]:
    prefix = bool(settings.get("add_prefix_space"))
    return {
        "normalizer": None,
        "pre_tokenizer": {**_BYTE_LEVEL, "add_prefix_space": prefix},
        "decoder": _BYTE_LEVEL,
    }


def _qwen2(settings: Mapping[str, Any]) -> dict[str, Any]:
    prefix = bool(settings.get("add_prefix_space"))
    words = _split({"Regex": _QWEN_WORDS}, "Isolated")
    level = {**_BYTE_LEVEL, "add_prefix_space": prefix, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _sequence("pretokenizers", words, level),
        "decoder": _BYTE_LEVEL,
    }


def _sequence(key: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(parts)}


def _split(pattern: dict[str, str], behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


_PIPELINES = {
    "LlamaTokenizer": _llama,
    "GemmaTokenizer": _gemma,
    "GPT2Tokenizer": _gpt2,
    "Qwen2Tokenizer": _qwen2,
}
