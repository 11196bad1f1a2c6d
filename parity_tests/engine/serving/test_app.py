"""The application on a socket: a full queue, clients that leave, readers that are slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import httpx2
import pytest

from engine.serving.requests import Done, Piece
from parity_tests.engine.serving.conftest import eventually, post, raw, running
from parity_tests.engine.serving.standin import Worker, said

COMPLETION = ("/v1/completions", {"prompt": "x", "n": 3})
CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
MESSAGE = ("/v1/messages", {"model": "", "max_tokens": 9, "messages": CHAT[1]["messages"]})
GENERATE = ("/api/generate", {"model": "tiny", "prompt": "x", "stream": False})
ALL = [COMPLETION, CHAT, MESSAGE, GENERATE]


def endless(request):
    """An answer that never ends by itself."""
    while True:
        yield Piece("word ", 5)


class Endless(Worker):
    """Its answers have no end; a ticket makes the next piece when it is read."""

    def submit(self, request):
        ticket = super().submit(request)
        ticket.events = endless(request)
        return ticket


@pytest.fixture
def client():
    with httpx2.Client(trust_env=False, timeout=20) as client:
        yield client


@pytest.mark.parametrize(("path", "body"), ALL)
def test_a_full_queue_says_when_to_come_again(service, client, path, body):
    worker = Worker(lambda request: said("x"), room=1 if body.get("n") else 0)
    with running(service(worker)) as url:
        told = client.post(url + path, json=body)
        streamed = client.post(url + path, json=body | {"stream": True})
    for answer in (told, streamed):
        assert answer.status_code == 429 and answer.headers["retry-after"] == "3"
        assert "wait already" in answer.text
    assert all(ticket.cancelled for ticket in worker.tickets)  # n=3 where one had room


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ALL)
def test_who_leaves_is_cancelled_at_once(service, path, body, stream):
    worker = Endless(lambda request: [], delay=0.01)
    with running(service(worker)) as url:
        connection = raw(url, post(path, json.dumps(body | {"stream": stream}).encode()))
        assert eventually(lambda: worker.tickets and worker.tickets[-1].given > 2)
        assert len(worker.tickets) == body.get("n", 1)
        assert not any(ticket.cancelled for ticket in worker.tickets)
        connection.close()
        assert eventually(lambda: all(ticket.cancelled for ticket in worker.tickets))


def test_a_slow_reader_holds_nobody(service, client):
    class Long(Worker):
        def submit(self, request):
            ticket = super().submit(request)
            if request.max_tokens == 100:
                ticket.events = endless(request)
            return ticket

    worker = Long(lambda request: said("x"))
    body = json.dumps({"prompt": "x", "stream": True, "max_tokens": 100}).encode()
    with running(service(worker)) as url:
        slow = raw(url, post("/v1/completions", body))
        assert eventually(lambda: worker.tickets and worker.tickets[0].given > 100)
        for _ in range(20):
            assert client.post(url + "/v1/completions", json={"prompt": "x"}).status_code == 200
        slow.close()
        assert eventually(lambda: worker.tickets[0].cancelled)


def test_a_reader_that_stops_is_let_go(service):
    worker = Endless(lambda request: [])
    body = json.dumps({"prompt": "x", "stream": True}).encode()
    with running(service(worker, send_seconds=0.3)) as url:
        connection = raw(url, post("/v1/completions", body))
        assert eventually(lambda: worker.tickets and worker.tickets[0].cancelled)
        connection.close()


def test_a_silent_stream_is_kept_alive(service):
    hold = asyncio.Event()
    worker = Worker(lambda request: said("x"), hold=hold)
    body = json.dumps({"prompt": "x", "stream": True}).encode()
    with running(service(worker, ping_seconds=0.1)) as url:
        connection = raw(url, post("/v1/completions", body))
        data = b""
        while data.count(b": ping") < 2:
            data += connection.recv(4096)
        assert b'"text":"x"' in data and b"[DONE]" not in data
        connection.close()


def test_answers_of_one_request_are_not_mixed_up(service, client):
    worker = Worker(lambda request: said(*(f"{request.sampling.seed}:{i} " for i in range(20))))
    with running(service(worker)) as url:
        body = {"prompt": ["a", "b"], "n": 4, "seed": 10, "stream": True}
        texts: dict[int, str] = {}
        with client.stream("POST", url + "/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    (choice,) = json.loads(line[6:])["choices"]
                    texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert sorted(texts) == list(range(8))
    for index, text in texts.items():
        assert text == "".join(f"{10 + index % 4}:{i} " for i in range(20))


def test_an_error_nobody_thought_of_is_500_without_its_words(service, client, caplog):
    class Broken(Worker):
        def submit(self, request):
            raise ZeroDivisionError("secret")

    with running(service(Broken(lambda request: []))) as url:
        told = client.post(url + "/v1/completions", json={"prompt": "x"})
        assert told.status_code == 500 and "secret" not in told.text
        assert told.json()["error"]["type"] == "server_error"
        # uvicorn ends the connection of such an answer: another one asks.
        assert httpx2.get(url + "/health").status_code == 200


@pytest.mark.parametrize("path", [COMPLETION[0], CHAT[0], MESSAGE[0], GENERATE[0]])
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"1", b'"x"', b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}',
        b'{"model": "", "prompt": "\\udfff x", "stream": false}', b"[" * 100_000, b'{"n": 1e999}',
        b'{"messages": [[]]}', b'{"prompt": NaN}', b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"model": 5}', b'{"prompt": {}}', b'{"model": "", "prompt": [[]]}', b'{"prompt": []}',
        b'{"model": "", "messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}',
    ],
)  # fmt: skip
def test_bodies_that_are_none(service, path, body):
    from starlette.testclient import TestClient

    from engine.serving.app import application

    app = application(service(Worker(lambda request: said("x"))))
    client = TestClient(app, base_url="http://localhost")
    told = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert told.status_code == 400
    error = told.json()["error"]
    line = error if isinstance(error, str) else error["message"]
    assert line and "\n" not in line and len(line) < 400


def test_many_streams_at_once(service):
    worker = Worker(lambda request: said("a", "b", "c"), delay=0.001)
    done = []

    def ask(url):
        with contextlib.closing(httpx2.Client(trust_env=False, timeout=30)) as client:
            told = client.post(url + "/v1/completions", json={"prompt": "x", "stream": True})
            done.append(told.text.count("data: "))

    with running(service(worker)) as url:
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert done == [5] * 32
    assert isinstance(worker.tickets[0].events[-1], Done)
