"""The server as a process: how it begins, how it ends, and what it does with what is broken."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from engine.errors import EngineError
from engine.serving.run import listen, url
from engine.serving.settings import Settings
from parity_tests.engine.serving.conftest import ROOT, eventually, post, raw, serving

SLOW = {"prompt": "def main(", "max_tokens": 200, "temperature": 0, "ignore_eos": True}


def failing(*arguments: object) -> str:
    """What `engine serve` says when it does not begin."""
    command = [sys.executable, "-m", "engine", "serve", "--backend", "mlx", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def begun(connection: socket.socket) -> bool:
    """Wait until a stream has begun."""
    data = b""
    while b"data: " not in data and (part := connection.recv(65536)):
        data += part
    return b"data: " in data


def metrics(process) -> str:
    return httpx2.get(process.url + "/metrics", trust_env=False).text


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    data = b""
    with connection:
        while part := connection.recv(65536):
            data += part
    return data


def test_one_line_says_where_it_is(server):
    assert server.line == f"serving tiny-chat at {server.url}\n"
    assert server.url.startswith("http://127.0.0.1:")


def test_an_occupied_port_is_one_line(server, tiny_llama):
    line = failing("--model", tiny_llama, "--port", server.port)
    assert f"127.0.0.1:{server.port}" in line and "in use" in line


@pytest.mark.parametrize("host", ["no.such.host.invalid", "256.0.0.1", "192.0.2.1", "é" * 70])
def test_addresses_that_are_none(host):
    with pytest.raises(EngineError, match="cannot listen") as refused:
        listen(Settings(host=host, port=0))
    assert "\n" not in str(refused.value)


def test_other_loopback_addresses():
    for host, shown in [("localhost", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "[::1]")]:
        try:
            bound = listen(Settings(host=host, port=0))
        except EngineError:
            assert host == "::1", "this machine has no IPv6"
            continue
        with bound:
            assert shown in url(bound) or "[::1]" in url(bound)


def test_a_corrupt_model_is_refused(tmp_path, tiny_llama):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_llama, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in failing("--model", folder, "--port", 0)
    assert "no-such-model" in failing("--model", "no-such-model", "--port", 0)
    shutil.copy(tiny_llama / "model.safetensors", weights)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer" in failing("--model", folder, "--port", 0)


def test_keys_come_from_a_file(tmp_path, chat_model):
    keys = tmp_path / "keys"
    keys.write_text("# of the team\n\n")
    assert "no API key" in failing("--model", chat_model, "--port", 0, "--api-key-file", keys)
    keys.write_text("good-key\n")
    with serving("--model", chat_model, "--api-key-file", keys) as process:
        models = process.url + "/v1/models"
        assert httpx2.get(models, trust_env=False).status_code == 401
        headers = {"Authorization": "Bearer good-key"}
        assert httpx2.get(models, headers=headers, trust_env=False).status_code == 200


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_all_that_was_taken_finish(chat_model, sign):
    body = json.dumps(SLOW | {"stream": True}).encode()
    with serving("--model", chat_model, "--max-rows", 1) as process:
        running = raw(process.url, post("/v1/completions", body))
        assert begun(running)
        waiting = raw(process.url, post("/v1/completions", json.dumps(SLOW).encode()))
        assert eventually(lambda: "engine_requests_total 2.0" in metrics(process))
        process.process.send_signal(sign)
        assert b"data: [DONE]" in answer(running)
        assert b'"completion_tokens":200' in answer(waiting)
        assert process.process.wait(20) == 0
        assert "finishing what runs" in process.process.stderr.read()
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(process.url, trust_env=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_log_on_a_full_disk_harms_nobody(chat_model):
    """Neither at the start nor at the end, when something would be said."""
    with open("/dev/full", "w") as full, serving("--model", chat_model, stderr=full) as process:
        running = raw(process.url, post("/v1/completions", json.dumps(SLOW).encode()))
        assert eventually(lambda: "engine_requests_running 1.0" in metrics(process))
        process.process.terminate()
        assert b'"completion_tokens":200' in answer(running)
        assert process.process.wait(20) == 0


def test_the_second_signal_ends_at_once(chat_model):
    body = json.dumps(SLOW | {"max_tokens": 4000, "stream": True}).encode()
    with serving("--model", chat_model) as process:
        connection = raw(process.url, post("/v1/completions", body))
        assert begun(connection)
        process.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.process.poll() is None
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(5) == 128 + signal.SIGTERM
        assert b"[DONE]" not in answer(connection)


def test_killed_and_started_again_on_the_same_port(chat_model, alone):
    body = {"prompt": "def main(", "max_tokens": 12, "temperature": 0}
    with serving("--model", chat_model) as process:
        port = process.port
        connection = raw(process.url, post("/v1/completions", json.dumps(SLOW).encode()))
        process.process.kill()
        process.process.wait()
        connection.close()
    with serving("--model", chat_model, "--port", port) as process:
        told = httpx2.post(process.url + "/v1/completions", json=body, trust_env=False)
        assert told.json()["choices"][0]["text"] == alone("def main(", 12)[0]


def test_nothing_is_printed_for_requests(chat_model):
    with serving("--model", chat_model) as process:
        for path in ("/health", "/nothing"):
            httpx2.get(process.url + path, trust_env=False)
        process.process.terminate()
        process.process.wait(20)
        printed = process.process.stdout.read() + process.process.stderr.read()
    assert "nothing" not in printed and "health" not in printed


def test_pytorch_serves_the_same(chat_model, alone):
    pytest.importorskip("transformers")
    body = {"prompt": "def main(", "max_tokens": 12, "temperature": 0, "logprobs": 1}
    with serving("--model", chat_model, "--backend", "torch") as process:
        where = process.url + "/v1/completions"
        choice = httpx2.post(where, json=body, trust_env=False, timeout=60).json()["choices"][0]
        assert choice["text"] == alone("def main(", 12)[0]
        assert len(choice["logprobs"]["token_logprobs"]) == 12
        assert "engine_rows 1.0" in metrics(process)


def test_two_ranks_serve_the_same_and_end_together(chat_model, alone):
    asked = {"prompt": "Once upon", "max_tokens": 9, "temperature": 0, "ignore_eos": True}
    with serving("--model", chat_model, "--ranks", 2) as server:
        body = httpx2.post(f"{server.url}/v1/completions", json=asked, timeout=60).json()
        assert body["choices"][0]["text"] == alone("Once upon", 9)[0]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def test_a_server_that_has_lost_a_rank_ends_with_a_line(chat_model):
    with serving("--model", chat_model, "--ranks", 2) as server:
        psutil.Process(server.process.pid).children()[1].kill()
        assert server.process.wait(60) == 2
        said = server.process.stderr.read()
    assert "engine: rank 1 of 2 was ended by signal 9" in said
