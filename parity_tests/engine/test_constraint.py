"""Constrained output matches its grammar, whatever a random model says and a seed draws."""

from __future__ import annotations

import json
import re

import jsonschema
import mlx.core as mx
import numpy as np
import pytest

from engine.constraint import Constraint, allowed
from engine.errors import InvalidRequest, TokenizerMismatch
from engine.files import find_model
from engine.sampling import Sampler, Sampling
from engine.tokenizer import load_tokenizer
from parity_tests.tokenizers import write_kind

VOCAB = 512
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "next"],
    "additionalProperties": False,
}
PATTERNS = [
    r"[ab]{3,9} c[0-9]+é?",
    r"(yes|no|日本)(, (yes|no))*",
    r"\d{4}/[^\d\n]\w",
    r"\s\S?",
    "",
    r"^x+$",
]
GOLDEN = ["tiny-llama", "tiny-gpt2", "tiny-gemma3"]


@pytest.fixture(scope="module", params=GOLDEN)
def tokenizer(request):
    return load_tokenizer(find_model(request.param))


def written(constraint, tokenizer, seed, vocab=VOCAB, most=150):
    """The ids a model of noise writes, its end token left out; None where they are too many."""
    key, ids = mx.random.key(seed), []
    sampler = Sampler(Sampling(temperature=1.0, seed=seed), [0], vocab)
    while not constraint.done:
        key, now = mx.random.split(key)
        token = sampler(mx.random.normal((vocab,), key=now) * 3, constraint.allowed()).item()
        constraint.took(token)
        if token in tokenizer.eos_ids:
            break
        ids.append(token)
        if len(ids) > most:
            return None
    return ids


def streamed(tokenizer, ids):
    text = tokenizer.stream()
    return "".join(text.push(id) for id in ids) + text.finish()


@pytest.mark.parametrize("seed", range(5))
def test_json_is_what_its_schema_says(tokenizer, seed):
    ids = written(Constraint.json_schema(SCHEMA, tokenizer, VOCAB), tokenizer, seed)
    jsonschema.validate(json.loads(streamed(tokenizer, ids)), SCHEMA)
    assert not tokenizer.special_ids & set(ids)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_text_is_what_a_regular_expression_matches(tokenizer, pattern):
    for seed in range(4):
        ids = written(Constraint.regex(pattern, tokenizer, VOCAB), tokenizer, seed)
        assert ids is None or re.fullmatch(pattern, streamed(tokenizer, ids), re.ASCII)
        assert ids is None or not tokenizer.special_ids & set(ids)


def test_without_a_constraint_nothing_matches(tokenizer):
    """The control: the same noise, drawn freely."""
    free = Sampler(Sampling(temperature=1.0, seed=0), [0], VOCAB)
    keys = mx.random.split(mx.random.key(0), 30)
    text = streamed(tokenizer, [free(mx.random.normal((VOCAB,), key=k) * 3).item() for k in keys])
    assert not any(re.fullmatch(pattern, text) for pattern in PATTERNS)
    with pytest.raises(ValueError, match=r"Expecting|Extra|Unterminated|Invalid"):
        json.loads(text)


@pytest.mark.parametrize(
    "kind", ["byte_level", "byte_level_prefix", "unigram", "gemma_like", "many_added"]
)
def test_every_kind_of_tokenizer_is_bridged(kind, tmp_path):
    tokenizer = load_tokenizer(write_kind(tmp_path, kind))
    vocab = tokenizer.max_id + 40  # rows without a token, as embeddings have
    for seed in range(6):
        constraint = Constraint.regex(PATTERNS[0], tokenizer, vocab)
        ids = written(constraint, tokenizer, seed, vocab)
        assert ids is None or re.fullmatch(PATTERNS[0], streamed(tokenizer, ids))
        assert ids is None or max(ids) <= tokenizer.max_id


def test_a_tokenizer_that_cannot_be_bridged_is_one_line(tmp_path):
    tokenizer = load_tokenizer(write_kind(tmp_path, "metaspace"))
    with pytest.raises(TokenizerMismatch, match="llguidance cannot read this tokenizer"):
        Constraint.regex("a", tokenizer, 700)


def test_a_model_without_an_end_token_is_refused(tmp_path):
    tokenizer = load_tokenizer(write_kind(tmp_path, "word_piece"))
    with pytest.raises(InvalidRequest, match="names no end token"):
        Constraint.regex("a", tokenizer, 700)


def test_end_tokens_come_where_the_grammar_is_complete_and_nowhere_else(tokenizer):
    ends = tokenizer.eos_ids
    constraint = Constraint.regex("a{1,3}", tokenizer, VOCAB)
    (a,) = tokenizer.encode("a", special=False)
    for n, complete in enumerate([False, True, True, True]):
        ids = set(np.flatnonzero(np.array(constraint.allowed())).tolist())
        assert ends <= ids if complete else not ends & ids
        assert ids & tokenizer.special_ids == (ends & tokenizer.special_ids if complete else set())
        assert constraint.done == (n == 3)
        if n < 3:
            constraint.took(a)
    assert ids == ends


def test_rows_of_a_batch_are_what_each_would_be_alone(tokenizer):
    one = Constraint.regex("abc", tokenizer, VOCAB)
    other = Constraint.json_schema(SCHEMA, tokenizer, VOCAB)
    rows = allowed([one, None, other], VOCAB)
    assert rows.shape == (3, VOCAB) and rows.dtype == mx.bool_
    assert mx.array_equal(rows[0], one.allowed()) and mx.array_equal(rows[2], other.allowed())
    assert mx.all(rows[1]) and not mx.array_equal(rows[0], rows[2])


def test_vocabularies_of_any_size_have_masks(tokenizer):
    for vocab in (VOCAB, VOCAB + 1, VOCAB + 31, VOCAB + 32):
        mask = Constraint.regex("[^q]*", tokenizer, vocab).allowed()
        assert mask.shape == (vocab,) and not mx.any(mask[VOCAB:])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(a", "unclosed group"),
        ("[^", "unclosed character class"),
        ("a(?=b)", "look-around"),
        (r"(a)\1", "backreferences"),
        (r"\bfoo", "lookarounds"),
        ("a{3,1}", "repetition"),
        ("a\\\\\\", "amid an escape"),
        ("(a|" * 40, "unclosed"),
    ],
)
def test_what_is_no_regular_expression_is_one_line(tokenizer, pattern, words):
    with pytest.raises(InvalidRequest) as caught:
        Constraint.regex(pattern, tokenizer, VOCAB)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 300
    assert repr(pattern)[:20] in message


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "no JSON"),
        ('{"items": ' * 9000, "no JSON"),
        ({"enum": {1, 2}}, "no JSON"),
        ("[]", "give an object"),
        (False, "give an object"),
        ("3", "give an object"),
        ({"type": "strin"}, "Invalid type: strin"),
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"x-guidance": {"lenient": True}, "not": {}}, 'Unimplemented keys: ["not"]'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"enum": []}, "Unsatisfiable"),
        ({"$ref": "http://localhost/s"}, "retrieving it failed"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "format": "what"}, "Unknown format"),
    ],
)
def test_what_is_no_schema_or_cannot_be_enforced_is_one_line(tokenizer, schema, words):
    with pytest.raises(InvalidRequest) as caught:
        Constraint.json_schema(schema, tokenizer, VOCAB)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 300


def test_any_json_may_be_asked_for(tokenizer):
    constraint = Constraint.json_schema("true", tokenizer, VOCAB)
    for token in tokenizer.encode('{"a": [1, null]}', special=False):
        assert constraint.allowed()[token]
        constraint.took(token)
    assert constraint.done


def test_blank_lines_without_end_are_not_json(tokenizer):
    (newline,) = tokenizer.encode("\n", special=False)
    constraint = Constraint.json_schema({}, tokenizer, VOCAB)
    for token in tokenizer.encode("[1,", special=False):
        constraint.took(token)
    assert not constraint.allowed()[newline].item()


def test_a_token_that_was_not_allowed_is_one_line(tokenizer):
    constraint = Constraint.regex("ab", tokenizer, VOCAB)
    with pytest.raises(InvalidRequest, match="does not go on with the regular expression 'ab'"):
        constraint.took(tokenizer.encode("z", special=False)[0])
