"""shimmy's protocol, as its clients speak it."""

from __future__ import annotations

import httpx2
import pytest

from engine.serving.app import application
from parity_tests.engine.serving.standin import Worker, said
from parity_tests.engine.serving.test_sse import read

ASKED = {"model": "tiny-chat", "temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(server):
    with httpx2.Client(base_url=server.url, trust_env=False) as client:
        yield client


@pytest.fixture
def asked_of(service, plain_tokenizer):
    """`asked_of(worker, body)` -> the answer of the application for a model without template."""
    from starlette.testclient import TestClient

    def ask(worker, body):
        served = service(worker)
        served.tokenizer = plain_tokenizer
        served.__post_init__()
        client = TestClient(application(served), base_url="http://localhost")
        return client.post("/api/generate", json=body)

    return ask


def test_a_prompt_is_a_turn_and_a_stream_is_plain_text(client, alone, tokenizer):
    text, _ = alone(tokenizer.chat([{"role": "user", "content": "hi"}]), 12)
    whole = client.post("/api/generate", json=ASKED | {"prompt": "hi", "stream": False})
    assert whole.json() == {"response": text}
    streamed = client.post("/api/generate", json=ASKED | {"prompt": "hi"})  # the default of shimmy
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *pieces, end = [data for _, data in read(streamed.content)]
    assert "".join(pieces) == text and end == "[DONE]"


def test_messages_and_system_go_through_the_template(client, alone, tokenizer):
    turns = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    text, _ = alone(tokenizer.chat(turns), 12)
    body = ASKED | {"messages": turns[1:], "system": "be", "stream": False, "unknown": 1}
    assert client.post("/api/generate", json=body).json() == {"response": text}


def test_a_model_without_template_continues_the_prompt(asked_of, plain_tokenizer):
    worker = Worker(lambda request: said("a", "\nb"))
    told = asked_of(worker, {"model": "tiny", "prompt": "hi"})
    assert [data for _, data in read(told.content)] == ["a", "\nb", "[DONE]"]
    (request,) = worker.requests
    assert list(request.prompt) == plain_tokenizer.prompt("hi")
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.9, 40)
    assert request.max_tokens == 256


def test_a_failure_in_a_stream_is_told_in_it(asked_of):
    from engine.serving.requests import Done

    worker = Worker(lambda request: [Done("error", "", 1, 0, 0, error="no memory")])
    told = asked_of(worker, {"model": "tiny", "prompt": "hi"})
    assert [data for _, data in read(told.content)] == ["[ERROR] no memory", "[DONE]"]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"model": "tiny-chat"}, 400, "neither prompt nor messages"),
        ({"prompt": "x"}, 400, "model is missing"),
        ({"model": "other", "prompt": "x"}, 404, "'other'"),
        (ASKED | {"prompt": "x", "max_tokens": 0}, 400, "max_tokens=0"),
        (ASKED | {"prompt": "x", "top_p": 2}, 400, "top_p=2"),
    ],
)
def test_bad_requests_are_refused_in_one_line(client, body, status, named):
    told = client.post("/api/generate", json=body)
    assert told.status_code == status and named in told.json()["error"]


def test_models_are_listed(client, chat_model):
    (model,) = client.get("/api/models").json()["models"]
    assert model["name"] == "tiny-chat" and model["model_type"] == "llama"
    assert model["size_bytes"] == (chat_model / "model.safetensors").stat().st_size
