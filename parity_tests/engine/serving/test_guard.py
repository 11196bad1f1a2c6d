"""Who may ask, and how much at once."""

from __future__ import annotations

import hmac

import pytest
from starlette.testclient import TestClient

from engine.serving.app import application
from parity_tests.engine.serving.standin import Worker, said

KEYS = ("first-key", "second-key", "third-key")
ASK = {"prompt": "x"}


@pytest.fixture
def client(service):
    """`client(host=..., **settings)` of the application."""

    def make(host: str = "localhost", **settings) -> TestClient:
        worker = Worker(lambda request: said("x"))
        return TestClient(application(service(worker, **settings)), base_url=f"http://{host}")

    return make


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
def test_each_key_opens(client, key, header):
    value = f"Bearer {key}" if header == "Authorization" else key
    told = client(keys=KEYS).post("/v1/completions", json=ASK, headers={header: value})
    assert told.status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "Bearer "},
        {"x-api-key": "FIRST-KEY"},
        {"x-api-key": b"\xff\xfe"},
    ],
)
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/completions", ("error", "code", "invalid_api_key")),
        ("/v1/messages", ("error", "type", "authentication_error")),
        ("/api/generate", ("error",)),
    ],
)
def test_anything_else_does_not(client, headers, path, kind):
    told = client(keys=KEYS).post(path, json=ASK, headers=headers)
    assert told.status_code == 401
    where, *rest = kind
    assert not rest or told.json()[where][rest[0]] == rest[1]


def test_all_keys_are_compared_whichever_it_is(client, monkeypatch):
    seen = []
    real = hmac.compare_digest

    def noted(a, b):
        seen.append(b)
        return real(a, b)

    monkeypatch.setattr("engine.serving.guard.hmac.compare_digest", noted)
    for key in (*KEYS, "no-key"):
        seen.clear()
        client(keys=KEYS).get("/v1/models", headers={"x-api-key": key})
        assert seen == [each.encode() for each in KEYS]


def test_only_what_tells_nothing_is_open(client):
    asked = client(keys=KEYS)
    for path, status in [("/", 200), ("/health", 200), ("/ready", 200), ("/metrics", 401)]:
        assert asked.get(path).status_code == status, path
    assert asked.get("/openapi.json").status_code == 401


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"])
def test_a_loopback_server_is_asked_by_its_names(client, host):
    assert client(host).get("/v1/models", headers={"Host": f"{host}:11435"}).status_code == 200
    assert client(host).get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:11435", "127.0.0.1.evil.example", "localhost.", "::1", ""],
)
def test_and_by_no_other(client, host):
    told = client().get("/v1/models", headers={"Host": host})
    assert told.status_code == 403 and "127.0.0.1" in told.json()["error"]["message"]


def test_a_public_server_has_any_name(service):
    app = application(service(Worker(lambda request: said("x")), host="0.0.0.0"))
    client = TestClient(app, base_url="http://my.example")
    assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_long_bodies_are_refused(client, chunked):
    body = b'{"prompt": "' + b"x" * 2000 + b'"}'
    content = iter([body[:500], body[500:]]) if chunked else body
    headers = {"Content-Type": "application/json"}
    asked = client(body_bytes=1000)
    told = asked.post("/v1/completions", content=content, headers=headers)
    assert told.status_code == 413 and "1,000 bytes" in told.json()["error"]["message"]
    assert told.headers["connection"] == "close"
    content = iter([body[:500], body[500:]]) if chunked else body
    fine = client(body_bytes=len(body)).post("/v1/completions", content=content, headers=headers)
    assert fine.status_code == 200


def test_pages_of_others_may_ask_only_where_it_is_said(client):
    origin = {"Origin": "https://a.example"}
    before = {**origin, "Access-Control-Request-Method": "POST"}
    closed, opened = client(), client(origins=("https://a.example",), keys=KEYS)
    assert "access-control-allow-origin" not in closed.get("/health", headers=origin).headers
    assert closed.options("/v1/completions", headers=before).status_code == 405
    told = opened.options("/v1/completions", headers=before)  # without a key, as browsers do
    assert told.status_code == 200
    assert told.headers["access-control-allow-origin"] == "https://a.example"
    other = opened.get("/health", headers={"Origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_form_of_a_page_is_no_request(client):
    told = client().post("/v1/completions", content=b'{"prompt": "x"}',
                         headers={"Content-Type": "text/plain"})  # fmt: skip
    assert told.status_code == 400 and "application/json" in told.json()["error"]["message"]
