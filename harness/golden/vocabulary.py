"""The tokenizers of the golden models, learnt from the text the models are trained on.

One of each kind that ports get wrong: byte-level BPE that adds BOS, byte-level BPE that does not,
and SentencePiece-style BPE with byte fallback. Nothing here knows the models.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = 512


def _llama3_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE that splits as Llama 3 does and begins every text with BOS."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _learn_merges(tokenizer, texts, ["<|begin|>", "<|end|>"], pre_tokenizers.ByteLevel.alphabet())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A",
        pair="<|begin|> $A <|begin|> $B",
        special_tokens=[("<|begin|>", 0)],
    )
    return tokenizer


def _gpt2_tokenizer(texts: list[str]) -> Tokenizer:
    """Return GPT-2's byte-level BPE: no BOS, one special token that ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _learn_merges(tokenizer, texts, ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def _gemma_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a BPE over characters, in SentencePiece's manner, with byte fallback and BOS.

    The pipeline is the one transformers' GemmaTokenizer builds whatever the file says, so the
    file says the same.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = [chr(code) for code in range(0x21, 0x7F)] + ["\n", "\t", "\u2581"]
    words = "\u2581*[A-Za-z0-9_]+|\u2581*[^A-Za-z0-9_\u2581\n]+|\u2581+|\n+"

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "\u2581")
    # for learning alone: without it the whole corpus would be one word
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(words), "isolated")
    _learn_merges(learner, texts, specials + fallback, characters)
    learned = json.loads(learner.to_str())["model"]

    tokenizer = Tokenizer(
        models.BPE(
            vocab=learned["vocab"],
            merges=[tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B:1", special_tokens=[("<bos>", 2)]
    )
    tokenizer.add_special_tokens(specials)
    return tokenizer


TOKENIZERS: dict[str, Callable[[list[str]], Tokenizer]] = {
    "llama3": _llama3_tokenizer,
    "gemma": _gemma_tokenizer,
    "gpt2": _gpt2_tokenizer,
}


def _learn_merges(
    tokenizer: Tokenizer,
    texts: list[str],
    specials: list[str],
    alphabet: list[str],
) -> None:
    from tokenizers import trainers

    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),  # a rarer character goes to the byte fallback
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
