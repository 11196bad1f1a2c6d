"""shimmy's WebSocket, asked by a real client."""

from __future__ import annotations

import itertools
import json
import signal
from contextlib import contextmanager

import pytest

from engine.serving.requests import Done, Piece
from parity_tests.engine.serving.conftest import eventually, running, serving
from parity_tests.engine.serving.standin import Worker, said
from parity_tests.engine.serving.test_app import Endless

pytest.importorskip("websockets")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

ASKED = {"model": "default", "temperature": 0.0, "max_tokens": 12}
DONE = '{"done": true}'


@contextmanager
def socket(url: str, **more):
    address = url.replace("http://", "ws://") + "/ws/generate"
    with connect(address, proxy=None, open_timeout=20, **more) as connection:
        yield connection


def told(url: str, asked, **more) -> list[str]:
    """All messages that a server answers to one."""
    with socket(url, **more) as connection:
        connection.send(asked if isinstance(asked, str | bytes) else json.dumps(asked))
        messages = list(connection)
    return messages


def test_text_comes_in_pieces_as_from_generate(server, alone, tokenizer):
    text, _ = alone(tokenizer.chat([{"role": "user", "content": "hi"}]), 12)
    for body in (
        ASKED | {"prompt": "hi"},
        ASKED | {"messages": [{"role": "user", "content": "hi"}]},
    ):
        *pieces, end = told(server.url, body)
        assert "".join(pieces) == text and len(pieces) > 1 and json.loads(end) == {"done": True}
    assert "".join(told(server.url, json.dumps(ASKED | {"prompt": "ho"}).encode())) != text + DONE


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ({"prompt": "x"}, "model is missing"),
        (ASKED | {"model": "other", "prompt": "x"}, "'other'"),
        (ASKED, "neither prompt nor messages"),
        (ASKED | {"prompt": "x", "max_tokens": 65}, "at most 64"),
        (ASKED | {"prompt": "x", "top_p": 2}, "top_p=2"),
    ],
)
def test_bad_requests_are_refused_in_one_line(server, asked, named):
    (message,) = told(server.url, asked)
    assert named in json.loads(message)["error"] and "\n" not in message


def test_failures_and_full_queues_are_told(service):
    failed = [Piece("a", 1), Done("error", "", 1, 0, 1, error="no memory")]
    with running(service(Worker(lambda request: failed, room=1))) as url:
        assert told(url, ASKED | {"prompt": "x"}) == ["a", '{"error": "no memory"}', DONE]
        (message,) = told(url, ASKED | {"prompt": "x"})
        assert "wait already" in json.loads(message)["error"]


@pytest.mark.parametrize("how", ["close", "break"])
def test_who_leaves_is_cancelled_at_once(service, how):
    worker = Endless(lambda request: [], delay=0.01)
    with running(service(worker)) as url, socket(url) as connection:
        connection.send(json.dumps(ASKED | {"prompt": "x"}))
        connection.recv()
        assert not worker.tickets[0].cancelled
        if how == "close":
            connection.close()
        else:
            connection.socket.shutdown(2)
        assert eventually(lambda: worker.tickets[0].cancelled)


@pytest.mark.full
def test_a_reader_that_stops_is_let_go(service):
    class Wordy(Worker):
        def submit(self, request):
            ticket = super().submit(request)
            ticket.events = itertools.repeat(Piece("word " * 2000, 5))
            return ticket

    worker, few = Wordy(lambda request: []), {"max_queue": 1, "compression": None}
    with running(service(worker, send_seconds=0.3)) as url, socket(url, **few) as connection:
        connection.send(json.dumps(ASKED | {"prompt": "x"}))
        assert eventually(lambda: worker.tickets and worker.tickets[0].cancelled)


def test_keys_names_and_pages(service):
    """As for requests; a page of another site is refused, which has no CORS to stop it here."""
    worker = Worker(lambda request: said("x"))
    body = ASKED | {"prompt": "x"}
    settings = {"keys": ("good-key",), "origins": ("https://a.example",)}
    key = {"Authorization": "Bearer good-key"}
    with running(service(worker, **settings)) as url:
        own = url
        for origin in (None, "https://a.example", own):
            more = {"origin": origin, "additional_headers": key}
            assert told(url, body, **more) == ["x", DONE]
        for status, more in [
            (401, {}),
            (401, {"additional_headers": {"x-api-key": "other"}}),
            (403, {"additional_headers": key, "origin": "https://b.example"}),
            (403, {"additional_headers": key, "origin": "null"}),
        ]:
            with pytest.raises(InvalidStatus) as refused, socket(url, **more):
                pass
            assert refused.value.response.status_code == status
    assert len(worker.requests) == 3


def test_too_long_a_message_is_refused(service):
    worker = Worker(lambda request: said("x"))
    body = json.dumps(ASKED | {"prompt": "x" * 2000})
    with running(service(worker, body_bytes=1000)) as url, pytest.raises(ConnectionClosed):
        told(url, body)
    assert not worker.requests


def test_the_first_signal_lets_an_answer_finish_and_no_idle_socket_hold_it(chat_model):
    with serving("--model", chat_model) as process, socket(process.url) as idle:
        with socket(process.url) as connection:
            asked = ASKED | {"prompt": "def main(", "max_tokens": 200}
            connection.send(json.dumps(asked))
            connection.recv()
            process.process.send_signal(signal.SIGTERM)
            assert list(connection)[-1] == DONE
        assert process.process.wait(20) == 0
        with pytest.raises(ConnectionClosed):
            idle.recv()
