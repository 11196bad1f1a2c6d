"""Fuzzed requests against the server's own OpenAPI document, a few; benchmarks/fuzz_server.py is
the long run."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx2
import pytest

from parity_tests.engine.serving.conftest import serving

BODY = {"prompt": "def main(", "max_tokens": 8, "temperature": 0}
COUNT = re.compile(r'engine_http_responses_total\{route="[^"]*",status="(\d+)"\} (\S+)')


@pytest.mark.full
def test_fuzzed_requests_are_served_or_refused(chat_model, tmp_path):
    pytest.importorskip("schemathesis")
    with serving("--model", chat_model, "--max-tokens", 8) as process:
        with httpx2.Client(base_url=process.url, trust_env=False, timeout=60) as client:
            before = client.post("/v1/completions", json=BODY).json()["choices"]
            command = [sys.executable, "-m", "schemathesis.cli", "run"]
            command += [process.url + "/openapi.json", "--checks", "not_a_server_error"]
            command += ["--phases", "coverage", "--mode", "all", "--include-method", "POST"]
            command += ["--seed", "1", "--suppress-health-check", "all", "--warnings", "off"]
            command += ["--workers", "4", "--continue-on-failure"]
            # Its status tells of errors of its own, too; the server's count is what is judged.
            subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
            counts = COUNT.findall(client.get("/metrics").text)
            assert sum(float(count) for _, count in counts) >= 200
            assert {status for status, _ in counts} >= {"200", "400"}
            assert not [status for status, _ in counts if status >= "500"]
            assert client.post("/v1/completions", json=BODY).json()["choices"] == before
        assert process.process.poll() is None


def test_the_document_names_every_route(server):
    told = httpx2.get(server.url + "/openapi.json", trust_env=False).json()
    assert set(told["paths"]) == {
        "/", "/health", "/ready", "/metrics", "/api/generate", "/api/models", "/v1/models",
        "/v1/models/{name}", "/v1/chat/completions", "/v1/completions", "/v1/messages",
        "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/apply-template",
    }  # fmt: skip
