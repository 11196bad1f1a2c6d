"""Health, readiness and metrics."""

from __future__ import annotations

from dataclasses import replace

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from engine.serving.app import application
from parity_tests.engine.serving.standin import STATUS, Worker, said


@pytest.fixture
def worker():
    return Worker(lambda request: said("a", "b"))


@pytest.fixture
def served(service, worker):
    return service(worker)


@pytest.fixture
def client(served):
    return TestClient(application(served), base_url="http://localhost")


def samples(text: str) -> dict[tuple, float]:
    """(name, labels) -> value, as Prometheus' own parser reads them."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_health_and_readiness(client, served, worker):
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/ready").status_code == 200
    served.closing = True
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    served.closing, worker.status = False, replace(STATUS, dead="no memory")
    assert client.get("/ready").status_code == 503
    dead = client.get("/health")
    assert dead.status_code == 503 and "no memory" in dead.json()["status"]


def test_metrics_are_prometheus(client):
    first = ("engine_time_to_first_token_seconds_count",)
    before = samples(client.get("/metrics").text)
    assert before["engine_requests_waiting",] == 3 and before["engine_requests_running",] == 2
    assert before["engine_prefix_cache_hits_total",] == 2 and before[first] == 0
    assert before["engine_resident_memory_bytes",] > 1 << 20
    client.post("/v1/completions", json={"prompt": "x", "n": 3})
    client.post("/v1/completions", json={})
    client.get("/v1/models/some-name")
    after = samples(client.get("/metrics").text)
    assert after[first] == 3

    def answers(route, status):
        return after["engine_http_responses_total", ("route", route), ("status", status)]

    assert answers("/v1/completions", "200") == answers("/v1/completions", "400") == 1
    assert answers("/v1/models/{name:path}", "404") == 1


def test_metrics_of_the_real_worker(server):
    with httpx2.Client(base_url=server.url, trust_env=False) as client:
        before = samples(client.get("/metrics").text)
        body = {"prompt": "def main(", "max_tokens": 7, "temperature": 0, "ignore_eos": True}
        client.post("/v1/completions", json=body).raise_for_status()
        after = samples(client.get("/metrics").text)
    made = "engine_generated_tokens_total"
    assert after[made,] == before[made,] + 7
    assert after["engine_requests_total",] == before["engine_requests_total",] + 1
    assert after["engine_peak_memory_bytes",] > 0 and after["engine_rows",] == 8
