"""Text to token ids: the tokenizer's pipeline, and the ids that begin and end a text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..tokenizers.sides import Ids, Side
from ..types import TokenFacts
from . import Fault, NotApplicable
from ._patient import Patient

Inject = Callable[[Patient, int], None]
# Where none of these changes, this tokenizer has no place for the fault.
SAMPLES = (" a  b", "e\u0301", "x\r\ny", "it's 1234567", "f(x):\n    return", "\u212b")


def _facts(change: Callable[[TokenFacts], TokenFacts]) -> Inject:
    """A fault that makes `change(facts)` of what is known of the tokenizer."""
    return _noticed(lambda patient: patient.facts(change))


def _ids(change: Callable[[tuple[int, ...], TokenFacts], tuple[int, ...]]) -> Inject:
    def changed(facts: TokenFacts) -> TokenFacts:
        return replace(facts, ids={text: change(ids, facts) for text, ids in facts.ids.items()})

    return _facts(changed)


def _texts(change: Callable[[str], str]) -> Inject:
    """A fault that does something to a text before it is encoded."""

    def plant(patient: Patient) -> None:
        tokens = patient.backend.tokens

        def called(texts: Any) -> TokenFacts:
            facts = tokens([change(text) for text in texts])
            return replace(facts, ids={text: facts.ids[change(text)] for text in texts})

        patient.backend.tokens = called

    return _noticed(plant)


def _pipeline(change: Callable[[Any], None]) -> Inject:
    """A fault that does `change` to the `tokenizers.Tokenizer` of either candidate."""
    return _noticed(lambda patient: patient.tokenizer(change))


def _streamed_one_by_one(patient: Patient, block: int) -> None:
    """Every id is decoded alone: half a character is flushed as it comes."""
    if not patient.has_tokenizer:
        raise NotApplicable("no tokenizer")
    side = patient.backend.side

    def changed() -> Side:
        whole = side()

        def stream(ids: Ids, skip: bool) -> str:
            assert whole.decode is not None
            return "".join(whole.decode((id,), skip) for id in ids)

        return replace(whole, stream=stream)

    patient.backend.side = changed


def _noticed(plant: Callable[[Patient], None], special: bool = False) -> Inject:
    def inject(patient: Patient, block: int) -> None:
        if not patient.has_tokenizer:
            raise NotApplicable("no tokenizer")
        samples = [_special(patient)] if special else SAMPLES
        before = patient.backend.tokens(samples)
        plant(patient)
        if patient.backend.tokens(samples) == before:
            raise NotApplicable("it changes nothing in this tokenizer")

    return inject


def _special(patient: Patient) -> str:
    """The name of a special token, as a text may have it."""
    found: list[Any] = []
    patient.tokenizer(lambda tokenizer: found.append(tokenizer.get_added_tokens_decoder()))
    patient.backend.tokens([""])
    names = (token.content for token in found[0].values() if token.special)
    return next(names, "")


def _begins_twice(ids: tuple[int, ...], facts: TokenFacts) -> tuple[int, ...]:
    return (*ids[:1], *ids) if ids[:1] == (facts.bos_id,) else ids


def _without_bos(ids: tuple[int, ...], facts: TokenFacts) -> tuple[int, ...]:
    return ids[1:] if ids[:1] == (facts.bos_id,) else ids


def _with_eos(ids: tuple[int, ...], facts: TokenFacts) -> tuple[int, ...]:
    return (*ids, *facts.eos_ids[:1])


def _shifted_bos(facts: TokenFacts) -> TokenFacts:
    return replace(facts, bos_id=None if facts.bos_id is None else facts.bos_id + 1)


def _no_normaliser(tokenizer: Any) -> None:
    from tokenizers.normalizers import Sequence

    tokenizer.normalizer = Sequence([])


def _composed(tokenizer: Any) -> None:
    from tokenizers.normalizers import NFKC, Sequence

    before = tokenizer.normalizer
    tokenizer.normalizer = Sequence([NFKC()] if before is None else [NFKC(), before])


def _split_as_gpt2(tokenizer: Any) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Sequence

    if isinstance(tokenizer.pre_tokenizer, Sequence):  # a pattern, then bytes
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)


def _special_as_text(tokenizer: Any) -> None:
    tokenizer.encode_special_tokens = True


def _fault(name: str, what: str, inject: Inject, **more: Any) -> Fault:
    return Fault(name, what, inject, "embed", "tokens", **more)


FAULTS = (
    _fault("bos-twice", "BOS is added twice", _ids(_begins_twice), source="T01"),
    _fault("no-bos", "BOS is not added", _ids(_without_bos)),
    _fault("eos-added", "EOS is added to every text", _ids(_with_eos)),
    _fault(
        "one-eos",
        "only one of several EOS is honoured",
        _facts(lambda facts: replace(facts, eos_ids=facts.eos_ids[:1])),
        source="T03",
    ),
    _fault("no-eos", "no EOS is known", _facts(lambda facts: replace(facts, eos_ids=()))),
    _fault("other-bos", "another id is taken for BOS", _facts(_shifted_bos)),
    _fault(
        "no-row",
        "a token has no row in the embedding",
        _facts(lambda facts: replace(facts, max_id=facts.rows)),
    ),
    _fault(
        "special-as-text",
        "special tokens in a text are split like other text",
        _noticed(lambda patient: patient.tokenizer(_special_as_text), special=True),
    ),
    _fault("space-dropped", "a text loses its leading space", _texts(lambda t: t.lstrip(" "))),
    _fault(
        "space-added",
        "a text gets a leading space",
        _texts(lambda t: t if t.startswith(" ") else f" {t}"),
    ),
    _fault("spaces-joined", "runs of spaces become one", _texts(lambda t: re.sub(" +", " ", t))),
    _fault("lines-alike", "line ends are made alike", _texts(lambda t: t.replace("\r\n", "\n"))),
    _fault("not-normalised", "the tokenizer's normalisation is missing", _pipeline(_no_normaliser)),
    _fault(
        "half-characters",
        "a character of several tokens is flushed half-way",
        _streamed_one_by_one,
        source="T07",
    ),
    _fault("composed", "Unicode is normalised where it is not to be", _pipeline(_composed)),
    _fault("pattern", "text is split by gpt2's pattern", _pipeline(_split_as_gpt2)),
)
