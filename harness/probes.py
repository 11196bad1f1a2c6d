"""The token sequences a comparison runs, each with the reason it exists.

What is derived from a model: its window, the length its rotary scaling was trained for, its
vocabulary. Random ids come from a fixed seed, so that every machine runs the same probes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InvalidPrompt
from engine.generate import check_prompt

from .errors import BadOption
from .types import Probe

GREEDY = "greedy"  # the kind of the reference's own continuation
GREEDY_TOKENS = 64
RANDOM_LENGTH = 40
LONGEST_EDGE = 512  # windows and lengths beyond this would need probes longer than this

TEXT = "def parity(actual, expected):\n    return actual == expected  # blocks"

# What tokenizers get wrong, for the tokens check.
TEXTS: dict[str, str] = {
    "words": "The quick brown fox jumps over the lazy dog.",
    "code": TEXT,
    "leading space": " leading and trailing ",
    "runs of spaces": "a  b   c    d",
    "newlines and tabs": "one\n\ttwo\r\n\n\nthree",
    "digits": "3.14159 2026 1234567890",
    "accents": "naïve café Ångström",
    "scripts": "Здравствуй 世界 مرحبا",
    "emoji": "👩‍🔬🎉",
    "combining": "e\u0301 n\u0303",
    "special tokens": "<s>a</s><bos>b<eos><|begin|>c<|end|> <|im_start|>d<|im_end|><|endoftext|>",
    "empty": "",
}


@dataclass(frozen=True)
class Kind:
    """A family of probes that are alike but for chance: `tokens(i)` are those of the i-th."""

    name: str
    reason: str
    tokens: Callable[[int], tuple[int, ...]]

    def probe(self, i: int) -> Probe:
        name = self.name if i == 0 else f"{self.name} {i + 1}"
        return Probe(name, self.name, self.reason, self.tokens(i))


def kinds_of(
    config: Mapping[str, Any],
    rows: int,
    bos_id: int | None,
    encode: Callable[[str], Sequence[int]] | None,
) -> list[Kind]:
    """The kinds of probes of a model with `rows` embedding rows, greedy ones excepted.

    `encode` turns a text into the reference's tokens; None without a tokenizer.
    """
    config = text_settings(config)
    longest = min(LONGEST_EDGE, config.get("n_positions") or LONGEST_EDGE)
    first = bos_id if bos_id is not None and bos_id < rows else 0

    def ids(length: int) -> Callable[[int], tuple[int, ...]]:
        return lambda i: _ids(length, rows, i)

    def one(i: int) -> tuple[int, ...]:
        return _ids(1, rows, i) if i else (first,)

    found = [Kind("single", "one token: every mask is trivial", one)]
    if encode and encode(TEXT):
        text = Kind("text", "ordinary text, as users send it", lambda i: tuple(encode(a_text(i))))
        found.append(text)
    found.append(Kind("random", "ids in no order: nothing is learned", ids(RANDOM_LENGTH)))
    window = config.get("sliding_window")
    if isinstance(window, int) and 0 < window <= (longest - 1) // 2:
        found += [
            Kind("window", f"as long as the window of {window}", ids(window)),
            Kind("window+1", "one token leaves the window", ids(window + 1)),
            Kind("windows", "crosses two windows", ids(2 * window + 1)),
        ]
    trained = trained_length(config)
    if trained is not None and trained + 8 <= longest:
        reason = f"longer than the {trained} tokens its rotary scaling was made for"
        found.append(Kind("beyond", reason, ids(trained + 8)))
    return found


def a_text(i: int) -> str:
    """The i-th text: TEXT, then lines of TEXTS in other orders."""
    if i == 0:
        return TEXT
    lines = [text for text in TEXTS.values() if text]
    return "\n".join(np.random.default_rng(i).permutation(lines)[:3])


def text_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with what it says of text at top level, where a family does more than text."""
    return {**config, **(config.get("text_config") or {})}


def decodable_length(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that decoding token by token computes as one pass does, if there is one.

    Learned positions end; and past its length a dynamic rotary base grows with every token, and
    the factors of LongRoPE are others, while the keys of earlier tokens stay as they were made, in
    transformers too.
    """
    config = text_settings(config)
    if any(kind in ("dynamic", "longrope", "su") for kind, _ in _scalings(config)):
        return trained_length(config)
    return config.get("n_positions")


def trained_length(config: Mapping[str, Any]) -> int | None:
    """The length a rotary scaling starts from, where config.json has one that depends on it."""
    config = text_settings(config)
    for kind, scaling in _scalings(config):
        if kind == "dynamic":
            return config.get("max_position_embeddings")
        key = "original_max_position_embeddings"
        if kind not in (None, "default", "linear") and (config.get(key) or scaling.get(key)):
            return config.get(key) or scaling.get(key)
    return None


def _scalings(config: Mapping[str, Any]) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    """Each rotary scaling with its kind: one, or one for each type of layer."""
    found = config.get("rope_scaling") or config.get("rope_parameters") or {}
    by_layer = [value for value in found.values() if isinstance(value, Mapping)]
    for scaling in by_layer or [found]:
        yield scaling.get("rope_type", scaling.get("type")), scaling


def read_prompts(path: Path, encode: Any, rows: int) -> list[Probe]:
    """Probes from a file: one text a line, or a JSON list of token ids a line.

    Raises BadOption for a file that cannot be read, InvalidPrompt for an empty or impossible one.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadOption(f"--prompts {path}: {error}") from None
    probes = []
    for number, line in enumerate(lines, 1):
        where = f"line {number} of {path}"
        if not line.strip():
            raise InvalidPrompt(f"{where} is empty: give a text or a JSON list of token ids")
        tokens = _tokens(line, encode, where)
        try:
            check_prompt(tokens, rows)
        except InvalidPrompt as error:
            raise InvalidPrompt(f"{where}: {error}") from None
        probes.append(Probe(f"prompt {number}", "prompt", where, tuple(tokens)))
    if not probes:
        raise InvalidPrompt(f"{path} is empty: give one text or JSON list of token ids a line")
    return probes


def _tokens(line: str, encode: Any, where: str) -> list[int]:
    if line.lstrip().startswith("["):
        try:
            tokens = json.loads(line)
        except json.JSONDecodeError:
            tokens = None
        if isinstance(tokens, list) and all(type(t) is int for t in tokens):
            return tokens
        raise InvalidPrompt(f"{where} is {line[:40]!r}: not a JSON list of token ids")
    if encode is None:
        raise InvalidPrompt(f"{where} is text, but the model has no tokenizer: give token ids")
    return list(encode(line))


def _ids(length: int, rows: int, i: int) -> tuple[int, ...]:
    """Seeded uniform ids, another sequence for every length and every i."""
    random = np.random.default_rng([length, i] if i else length)
    return tuple(int(token) for token in random.integers(0, rows, length))
