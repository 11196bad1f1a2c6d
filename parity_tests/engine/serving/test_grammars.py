"""Grammars of llguidance through the real server: batched and streamed beside free answers."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import openai
import pytest

pytest.importorskip("llguidance")

MESSAGES = [{"role": "user", "content": "a function"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
PATTERN = "[a-z]{3,8}(, [a-z]{3,8}){2}"
JSON = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
REGEX = {"type": "regex", "pattern": PATTERN}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def constrained(loaded):
    """`constrained(kind, source)` -> the greedy answer of `engine.generate` alone."""
    from engine.constraint import Constraint
    from engine.generate import generate

    def make(kind, source) -> str:
        tokenizer, vocab = loaded.tokenizer, loaded.spec.vocab
        constraint = getattr(Constraint, kind)(source, tokenizer, vocab) if kind else None
        stop = tokenizer.eos_ids
        ids = tokenizer.chat(MESSAGES)
        tokens = generate(loaded.decoder, ids, 64, stop=stop, constraint=constraint)
        return tokenizer.decode([token for token in tokens if token not in stop])

    return make


def streamed(client, response_format, **more) -> list[str]:
    """The texts of a chat's answers, put together from their chunks."""
    asked = {"model": "", "messages": MESSAGES, "max_tokens": 64, "temperature": 0, **more}
    format = {"response_format": response_format} if response_format else {}
    texts = [""] * asked.get("n", 1)
    for chunk in client.chat.completions.create(**asked, stream=True, extra_body=format):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts


def test_constrained_and_free_answers_share_the_rows(client, constrained):
    """Each is what it is alone, though their steps are one batch."""
    expected = {
        "json": (JSON, constrained("json_schema", json.dumps(SCHEMA))),
        "regex": (REGEX, constrained("regex", PATTERN)),
        "free": (None, constrained(None, None)),
    }
    jsonschema.validate(json.loads(expected["json"][1]), SCHEMA)
    assert re.fullmatch(PATTERN, expected["regex"][1])
    assert not re.fullmatch(PATTERN, expected["free"][1])
    kinds = ["json", "free", "regex", "json", "regex", "free"]
    with ThreadPoolExecutor(len(kinds)) as pool:
        found = list(pool.map(lambda kind: streamed(client, expected[kind][0]), kinds))
    assert found == [[expected[kind][1]] for kind in kinds]


def test_drawn_answers_of_one_request_each_keep_the_grammar(client):
    """Every one has a grammar of its own, with a state of its own."""
    drawn = {"n": 4, "temperature": 1.5, "seed": 3, "presence_penalty": 1.0}
    for text in (texts := streamed(client, JSON, **drawn)):
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > 1
    assert all(re.fullmatch(PATTERN, text) for text in streamed(client, REGEX, **drawn))
    free = streamed(client, None, **drawn)
    assert not any(re.fullmatch(PATTERN, text) for text in free)


def test_a_grammar_that_is_none_ends_its_request_alone(client, constrained):
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(streamed, client, REGEX)
        with pytest.raises(openai.BadRequestError, match="nonsense"):
            streamed(client, {**JSON, "json_schema": {"schema": {"type": "nonsense"}}})
    assert beside.result() == [constrained("regex", PATTERN)]
