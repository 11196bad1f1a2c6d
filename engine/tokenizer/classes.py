"""How transformers 5.23 reads a tokenizer.json: which parts it keeps, and which it replaces.

Some tokenizer classes rebuild the pipeline (normalizer, pre-tokenizer, decoder) around the file's
vocabulary, merges and post-processor, whatever the file says. What they put there stands here as
data, in tokenizer.json's own spelling.
Sources: tokenization_*.py of transformers/models/{auto,cohere,gemma,gpt2,gpt_neox,llama,qwen2,
qwen3_5}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .settings import Settings, content

_END = "<|endoftext|>"

# Special tokens of the classes that rebuild, where the configuration does not name them.
_DEFAULTS: dict[str, dict[str, str | None]] = {
    "CohereTokenizer": {
        "unk_token": "<UNK>",
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "pad_token": "<PAD>",
        "cls_token": "<CLS>",
        "sep_token": "<SEP>",
        "mask_token": "<MASK_TOKEN>",
    },
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
    "GPTNeoXTokenizer": {
        "unk_token": _END,
        "bos_token": _END,
        "eos_token": _END,
        "pad_token": "<|padding|>",
    },
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "Qwen2Tokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
    "Qwen3_5Tokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
}

# The class of a model type, where AutoTokenizer has one. _PLAIN takes the file as it is.
_PLAIN = "TokenizersBackend"
_CLASSES = {
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text"), "GemmaTokenizer"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mamba", "olmo", "olmoe"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    **dict.fromkeys(("qwen3_5_moe_text", "qwen3_5_text"), "Qwen3_5Tokenizer"),
    **dict.fromkeys(("glm", "glm4", "granite", "granitemoe", "olmo2", "stablelm"), _PLAIN),
    **dict.fromkeys(("mistral", "mistral3", "ministral", "mixtral"), _PLAIN),
    **dict.fromkeys(("nemotron", "phi3", "phimoe"), _PLAIN),
}
# Model types whose own tokenizer_class AutoTokenizer does not believe.
_OVERRULED = ("nemotron", "phi3", "phimoe", "qwen2", "qwen3_5_moe_text")


def rebuilding_class(byte_level: bool, settings: Settings) -> str | None:
    """The class that rebuilds the pipeline; None where the file is taken as it is.

    `byte_level`: whether tokenizer.json has the word "ByteLevel" in it, anywhere.
    """
    stated = settings.stated.get("tokenizer_class") or settings.model.get("tokenizer_class")
    stated = stated.removesuffix("Fast") if isinstance(stated, str) else None
    model_type = settings.model.get("model_type")
    own = _CLASSES.get(model_type) if isinstance(model_type, str) else None
    if stated == "LlamaTokenizer" and model_type not in _OVERRULED and byte_level:
        return None  # llama 3 calls itself LlamaTokenizer too
    if own == _PLAIN:
        return None
    clash = own is not None and stated is not None and own != stated
    kind = own if clash and model_type in _OVERRULED else stated or own
    return kind if kind in _DEFAULTS else None


def with_defaults(kind: str | None, settings: Settings, padding: str | None = None) -> Settings:
    """The settings with the tokens that a class, or the padding of a file, names by itself."""
    defaults = {"pad_token": padding, **_DEFAULTS.get(kind or "", {})}
    return replace(settings, stated={**defaults, **settings.stated})


def rebuilt(kind: str, raw: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """tokenizer.json after what the class does to it; added tokens come from the settings alone."""
    model = raw.get("model") or {}
    vocab = model.get("vocab") or {}
    if isinstance(vocab, list):  # Unigram: [piece, score] in the order of the ids
        vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    bpe = {"type": "BPE", "vocab": vocab, "merges": model.get("merges") or []}
    pipeline = _PIPELINES[kind](settings.stated)
    model = {**bpe, **pipeline.pop("model", {})}
    return {**raw, **pipeline, "model": model, "added_tokens": []}


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
_QWEN3_5_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
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


def _gpt_neox(settings: Mapping[str, Any]) -> dict[str, Any]:
    trim = bool(settings.get("trim_offsets", True))
    pipeline = _gpt2(settings)
    pipeline["pre_tokenizer"]["trim_offsets"] = trim
    return {**pipeline, "normalizer": {"type": "NFC"}, "post_processor": None}


def _cohere(settings: Mapping[str, Any]) -> dict[str, Any]:
    pipeline = _gpt2(settings)
    digits = {"type": "Digits", "individual_digits": True}
    words = _sequence("pretokenizers", digits, pipeline["pre_tokenizer"])
    return {**pipeline, "normalizer": {"type": "NFC"}, "pre_tokenizer": words}


def _qwen2(settings: Mapping[str, Any], pattern: str = _QWEN_WORDS) -> dict[str, Any]:
    prefix = bool(settings.get("add_prefix_space"))
    words = _split({"Regex": pattern}, "Isolated")
    level = {**_BYTE_LEVEL, "add_prefix_space": prefix, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _sequence("pretokenizers", words, level),
        "decoder": _BYTE_LEVEL,
    }


def _qwen3_5(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _qwen2(settings, _QWEN3_5_WORDS)


def _sequence(key: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(parts)}


def _split(pattern: dict[str, str], behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


_PIPELINES = {
    "CohereTokenizer": _cohere,
    "GemmaTokenizer": _gemma,
    "GPT2Tokenizer": _gpt2,
    "GPTNeoXTokenizer": _gpt_neox,
    "LlamaTokenizer": _llama,
    "Qwen2Tokenizer": _qwen2,
    "Qwen3_5Tokenizer": _qwen3_5,
}
