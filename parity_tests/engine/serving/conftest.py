"""Servers for tests: the real one as a process, and the application over a scripted worker."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine.files import find_model
from engine.serving.service import Service
from engine.serving.settings import Settings
from engine.tokenizer import Templates, load_tokenizer

from .models import worded
from .standin import Worker

ROOT = Path(__file__).parents[3]
LLAMA = ROOT / "golden" / "models" / "tiny-llama"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if tools %}# tools: {{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}def {% endif %}"
)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory) -> Path:
    """tiny-llama with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    shutil.copytree(LLAMA, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def worded_model(random_model):
    """`worded_model(family, variant)` -> a small random model whose ids are words, made once."""
    return cache(lambda family, variant: worded(random_model(family, variant)))


@dataclass
class Process:
    """A running `engine serve`."""

    process: subprocess.Popen
    url: str
    line: str

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])


@contextmanager
def serving(*arguments: object, stderr: Any = subprocess.PIPE) -> Iterator[Process]:
    """`engine serve` on a free port, ready; it is killed at the end if it still runs."""
    command = [sys.executable, "-m", "engine", "serve", *map(str, arguments)]
    if "--backend" not in command:
        command += ["--backend", "mlx"]
    if "--port" not in command:
        command += ["--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": stderr}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        yield Process(process, found[0], line)
    finally:
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()


@pytest.fixture(scope="session")
def server(chat_model) -> Iterator[Process]:
    """The real server, for a model with a chat template."""
    with serving("--model", chat_model, "--max-tokens", 64) as process:
        yield process


@pytest.fixture(scope="session")
def loaded(chat_model):
    from engine import load

    return load(chat_model)


@pytest.fixture(scope="session")
def alone(loaded):
    """`alone(prompt, count)` -> what `engine.generate` continues a text or ids with, as text, and
    how many tokens it took."""
    from engine.generate import generate

    def continued(prompt, count: int) -> tuple[str, int]:
        tokenizer = loaded.tokenizer
        ids = tokenizer.prompt(prompt) if isinstance(prompt, str) else list(prompt)
        stop = tokenizer.eos_ids
        tokens = list(generate(loaded.decoder, ids, count, stop=stop))
        return tokenizer.decode([t for t in tokens if t not in stop]), len(tokens)

    return continued


@pytest.fixture(scope="session")
def tokenizer(chat_model):
    return load_tokenizer(find_model(chat_model))


@pytest.fixture
def service(tokenizer):
    """`service(worker, **settings)` -> a Service over a scripted worker."""

    def make(worker: Worker, **settings) -> Service:
        return Service("tiny", worker, tokenizer, 512, Settings(**settings))

    return make


@pytest.fixture
def connected(service):
    """`connected(worker, connect)` -> `connect(url)` of the application over a scripted worker."""
    with ExitStack() as stack:

        def make(worker, connect):
            return stack.enter_context(connect(stack.enter_context(running(service(worker)))))

        yield make


@pytest.fixture
def plain_tokenizer():
    """One without chat template."""
    tokenizer = load_tokenizer(find_model(LLAMA))
    assert not tokenizer.templates and isinstance(tokenizer.templates, Templates)
    return tokenizer


@contextmanager
def running(service: Service) -> Iterator[str]:
    """The application on a socket, in a thread of this process; gives its address."""
    import uvicorn

    from engine.serving.run import config_of, listen, url

    bound = listen(Settings(port=0))
    server = uvicorn.Server(config_of(service))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        yield url(bound)
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def eventually(happened, seconds: float = 10.0) -> bool:
    """Whether something comes true before the time is up."""
    end = time.monotonic() + seconds
    while not (value := happened()) and time.monotonic() < end:
        time.sleep(0.01)
    return bool(value)


def raw(url: str, request: bytes) -> socket.socket:
    """A connection on which some bytes were sent."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(request)
    return connection


def post(path: str, body: bytes) -> bytes:
    """The bytes of a POST of JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
