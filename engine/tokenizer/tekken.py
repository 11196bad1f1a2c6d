"""Mistral's tekken.json in the spelling of a tokenizer.json.

The file has a pattern, byte sequences in the order of their ranks, and special tokens, whose ids
come first. Of the sequences as many count as the stated vocabulary has room for. Merges are not
written down: every split of a sequence into two others is one, in the order of ranks.
Sources: Tekkenizer of mistral-common 1.9, MistralConverter of transformers 5.23.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .building import build
from .settings import Settings

# What files of the first version, which list none, begin with.
_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    *("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "[TOOL_CONTENT]",
)
# The file names no BOS and no EOS; mistral-common knows them by these names.
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def read_tekken(path: Path, settings: Settings) -> tuple[Any, Settings]:
    """The `tokenizers.Tokenizer` of a file, and the settings with what the format adds to them.

    Raises KeyError, TypeError or ValueError where it is none.
    """
    stated = {**NAMED, "add_bos_token": True, **settings.stated}
    return build(as_json(path)), replace(settings, stated=stated)


def as_json(path: Path) -> dict[str, Any]:
    """tokenizer.json of a tekken.json."""
    raw = json.loads(path.read_bytes())
    config = raw["config"]
    special = _special_tokens(raw)
    room = config.get("default_vocab_size")
    entries = raw["vocab"][: None if room is None else room - len(special)]
    sequences = [base64.b64decode(entry["token_bytes"]) for entry in entries]
    letters = _letters()
    texts = [sequence.decode("latin-1").translate(letters) for sequence in sequences]
    vocab = {text: rank for rank, text in enumerate(texts, len(special))}
    merges = list(_merges(vocab))
    vocab |= {text: i for i, text in enumerate(special)}
    split = {"type": "Split", "pattern": {"Regex": config["pattern"]}}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [_added(i, text) for i, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {**split, "behavior": "Isolated", "invert": False},
                {**level, "use_regex": False},
            ],
        },
        "post_processor": {**level, "trim_offsets": False, "use_regex": True},
        "decoder": {**level, "add_prefix_space": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": True},
    }


def _special_tokens(raw: dict[str, Any]) -> list[str]:
    """In the order of their ids, filled up to the stated number."""
    listed = raw.get("special_tokens")
    if listed is None:
        names = list(_SPECIAL)
    else:
        listed = sorted(listed, key=lambda each: each["rank"])
        if [each["rank"] for each in listed] != list(range(len(listed))):
            raise ValueError("the ranks of its special tokens are not 0, 1, 2, ...")
        names = [each["token_str"] for each in listed]
    stated = raw["config"].get("default_num_special_tokens")
    count = len(names) if stated is None else stated
    return names + [f"<SPECIAL_{i}>" for i in range(len(names), count)]


def _merges(ranks: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Every way to make a text of two others, in the order BPE is to try them."""
    for whole in ranks:
        found = []
        for cut in range(1, len(whole)):
            left = ranks.get(whole[:cut])
            if left is not None and (right := ranks.get(whole[cut:])) is not None:
                found.append((left, right, cut))
        for _, _, cut in sorted(found):
            yield whole[:cut], whole[cut:]


def _letters() -> dict[int, str]:
    """A printable letter for every byte, as GPT-2's byte-level BPE has them."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def _added(id: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": text, **flags, "special": True}
