"""Output that follows a grammar: which tokens may come next, for one request.

llguidance does the work, over bytes, so that a token may begin or end anywhere. Nothing here knows
logits, a model, or text that was made before; how a token is chosen is the business of `sampling/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import mlx.core as mx
import numpy as np

from .errors import BackendUnavailable, InvalidRequest, TokenizerMismatch
from .tokenizer import Tokenizer

# A space is allowed where JSON allows whitespace and nothing more is: small models, let free, write
# blank lines without end. A schema may not switch the checks off (key x-guidance).
_JSON = {"whitespace_pattern": "[ ]?", "lenient": False, "coerce_one_of": False}
_WORD = 32  # bits of a mask's words


class Constraint:
    """One request's grammar and how far its text has come in it.

    End tokens are allowed where the grammar is complete, other special tokens nowhere.
    """

    def __init__(self, grammar: str, tokenizer: Tokenizer, vocab: int, what: str) -> None:
        """Made by `json_schema` and `regex`; `grammar` is llguidance's, `what` names it."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        bridge = _bridge(tokenizer, vocab)
        self._matcher = LLMatcher(bridge, grammar, log_level=0, limits=limits)
        self._vocab, self.grammar, self.what = vocab, grammar, what
        if self._matcher.is_error():
            raise InvalidRequest(f"{what} cannot be used: {_reason(self._matcher.get_error())}")

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any] | bool | str, tokenizer: Tokenizer, vocab: int
    ) -> Constraint:
        """JSON that a schema validates, as an object or as text; `vocab` is the number of logits.

        Raises InvalidRequest for what is no schema, or has a keyword that cannot be enforced.
        """
        compiler = _library().LLMatcher
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            if schema is True:
                schema = {}
            if not isinstance(schema, Mapping):
                raise InvalidRequest(f"the JSON schema is {schema!r:.40}: give an object")
            text = json.dumps({key: schema[key] for key in schema if key != "x-guidance"})
            grammar = compiler.grammar_from_json_schema(text, overrides=_JSON)
        except (ValueError, TypeError, RecursionError) as cause:
            raise InvalidRequest(f"the JSON schema is no JSON ({cause}): correct it") from None
        return cls(grammar, tokenizer, vocab, "the JSON schema")

    @classmethod
    def regex(cls, pattern: str, tokenizer: Tokenizer, vocab: int) -> Constraint:
        """Text that a regular expression matches as a whole; \\d, \\w and \\s are those of ASCII.

        The syntax is that of Rust's regex crate: neither look-around nor references. Raises
        InvalidRequest for what is no expression, or has either.
        """
        what = f"the regular expression {pattern!r:.60}"
        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:  # llguidance takes it for two
            raise InvalidRequest(f"{what} cannot be used: it ends amid an escape")
        lark = _library().regex_to_lark(pattern, "dws")
        return cls(f"start: /{lark}/", tokenizer, vocab, what)

    def allowed(self) -> mx.array:
        """(V,) booleans: what the next token may be."""
        return allowed([self], self._vocab)[0]

    def took(self, token: int) -> None:
        """The text now has this token. Raises InvalidRequest for one that was not allowed."""
        if not self._matcher.consume_token(token):
            raise InvalidRequest(
                f"token {token} does not go on with {self.what}: a bias may have banned all others"
            )

    @property
    def done(self) -> bool:
        """Whether nothing but an end token may follow."""
        return self._matcher.is_stopped()

    def _write(self, words: np.ndarray) -> None:
        """Fill a row of a mask, (V / 32,) uint32, the lowest bit first."""
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise InvalidRequest(f"{self.what} leads nowhere from here: {reason}")


def allowed(rows: Sequence[Constraint | None], vocab: int) -> mx.array:
    """(B, V) booleans: what the next token of each row may be; anything where there is None."""
    words = np.full((len(rows), -(-vocab // _WORD)), 0xFFFFFFFF, np.uint32)
    for row, constraint in zip(words, rows, strict=True):
        if constraint is not None:
            constraint._write(row)
    bits = (mx.array(words)[..., None] >> mx.arange(_WORD, dtype=mx.uint32)) & 1
    return bits.reshape(len(rows), -1)[:, :vocab].astype(mx.bool_)  # (B, V / 32, 32) -> (B, V)


_bridges: WeakKeyDictionary[Tokenizer, dict[int, Any]] = WeakKeyDictionary()


def _bridge(tokenizer: Tokenizer, vocab: int) -> Any:
    """llguidance's own form of a tokenizer, which takes it a second to make: kept."""
    made = _bridges.setdefault(tokenizer, {})
    if vocab not in made:
        ends = sorted(tokenizer.eos_ids)
        if not ends:
            raise InvalidRequest(
                "the model names no end token, and constrained output ends with one: name it as "
                "eos_token_id in generation_config.json"
            )
        try:
            pipeline = json.dumps(_for_pieces(json.loads(tokenizer.to_json())))
            made[vocab] = _library().LLTokenizer(pipeline, n_vocab=vocab, eos_token=ends)
        except ValueError as cause:
            raise TokenizerMismatch(
                f"llguidance cannot read this tokenizer ({_reason(str(cause))}): "
                "constrained output needs another model"
            ) from None
    return made[vocab]


def _for_pieces(raw: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json without a space in front: llguidance encodes pieces from amid a text."""
    first = raw.get("pre_tokenizer") or {}
    for step in (first, *first.get("pretokenizers", ())):
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
    return raw


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise BackendUnavailable(
            "constrained output needs llguidance: pip install 'mlx-parity[serve]'"
        ) from None
    return llguidance


def _reason(error: str) -> str:
    """What is wrong, out of llguidance's picture of where."""
    said = re.search(r"^error: (.+)$", error, re.MULTILINE)
    first = error.partition("(in regex): ")[2] or error
    return said[1] if said else first.partition("\n")[0][:200]
