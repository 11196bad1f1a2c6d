"""The tokenizer over HTTP: what the harness's comparison says of it, and what is refused."""

from __future__ import annotations

import json

import httpx2
import pytest

from parity_tests.engine.serving.conftest import running
from parity_tests.engine.serving.standin import Worker, said

TURN = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def client(server):
    with httpx2.Client(base_url=server.url, trust_env=False) as client:
        yield client


def judged(command, url, model, tmp_path) -> dict[str, str]:
    """What `harness tokenizer` says of a server, by question."""
    file = tmp_path / "told.json"
    given = ("--model", model, "--candidate", url, "--fuzz", 20, "--json", file)
    done = command("harness", "tokenizer", *given)
    told = json.loads(file.read_text())
    assert (told["verdict"], done.status) in (("pass", 0), ("fail", 1)), done.err
    return {answer["question"]: answer["verdict"] for answer in told["answers"]}


ASKED = {"ids", "count", "round trip", "decode", "template", "chat", "states"}


def test_the_harness_finds_no_difference(command, server, chat_model, tmp_path):
    pytest.importorskip("transformers")
    found = judged(command, server.url, chat_model, tmp_path)
    assert {question for question, verdict in found.items() if verdict == "pass"} == ASKED
    assert "fail" not in found.values()


@pytest.mark.parametrize(
    ("method", "wrong", "named"),
    [
        ("encode", lambda usual: lambda text, **more: usual(text.lower(), **more), "ids"),
        ("decode", lambda usual: lambda ids: usual(ids).strip(), "round trip"),
        ("prompt", lambda usual: lambda text: [0, *usual(text)], "count"),
    ],
)
def test_the_harness_finds_a_fault(command, service, chat_model, tmp_path, method, wrong, named):
    """Negative control: a server whose tokenizer is off by a little."""
    pytest.importorskip("transformers")
    served = service(Worker(lambda request: said("x", prompt=len(request.prompt))))
    setattr(served.tokenizer, method, wrong(getattr(served.tokenizer, method)))
    try:
        with running(served) as url:
            found = judged(command, url, chat_model, tmp_path)
    finally:
        delattr(served.tokenizer, method)
    assert found[named] == "fail"


def test_what_llama_cpp_says(client, tokenizer):
    text = "naïve <s> x"
    for special in (False, True):
        body = {"content": text, "add_special": special, "unknown": 1}
        ids = client.post("/tokenize", json=body).json()["tokens"]
        assert ids == tokenizer.encode(text, special=special)
        told = client.post("/detokenize", json={"tokens": ids}).json()
        assert told == {"content": tokenizer.decode(ids)}
    told = client.post("/apply-template", json={"messages": [TURN]}).json()
    assert told == {"prompt": tokenizer.templates.render([TURN], generation=True)}


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/tokenize", {}, "content is missing"),
        ("/tokenize", {"content": "x", "with_pieces": True}, "with_pieces"),
        ("/tokenize", {"content": "x", "parse_special": False}, "parse_special"),
        ("/tokenize", {"content": "\ud800"}, "surrogate"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0=-1"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/apply-template", {"messages": []}, "messages"),
        ("/apply-template", {"messages": [TURN], "chat_template_kwargs": {"tools": []}}, "tools"),
    ],
)
def test_bad_requests_are_refused_in_one_line(client, path, body, named):
    headers = {"Content-Type": "application/json"}
    told = client.post(path, content=json.dumps(body), headers=headers)
    line = told.json()["error"]["message"]
    assert told.status_code == 400 and named in line and "\n" not in line


def test_a_model_without_template_has_none_to_apply(service, plain_tokenizer):
    served = service(Worker(lambda request: said("x")))
    served.tokenizer = plain_tokenizer
    served.__post_init__()
    with running(served) as url:
        told = httpx2.post(f"{url}/apply-template", json={"messages": [TURN]}, trust_env=False)
    assert told.status_code == 400 and "chat template" in told.json()["error"]["message"]
