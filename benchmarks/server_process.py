"""What the benchmarks of the server share: servers as processes on loopback, and their metrics."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "golden" / "models"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}def {% endif %}"
)


@dataclass
class Server:
    """A server that answers."""

    process: subprocess.Popen[str]
    url: str

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def cpu_seconds(self) -> float:
        """What all its threads have computed, which says something on a busy machine, too."""
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def metrics(self) -> dict[str, float]:
        """Figures of /metrics by name, labels included."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


def serve_command(model: Path | str, *options: object) -> list[str]:
    """The command of `engine serve`, with MLX and, unless it is named, on a free port."""
    command = [sys.executable, "-m", "engine", "serve", "--model", str(model), "--backend", "mlx"]
    return [*command, *([] if "--port" in options else ["--port", "0"]), *map(str, options)]


@contextmanager
def engine(model: Path | str, *options: object, **process_options: Any) -> Iterator[Server]:
    """`engine serve` on a free port, with MLX; `process_options` are those of Popen."""
    command = serve_command(model, *options)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **process_options
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the server did not begin"
        yield Server(process, found[0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def mlx_lm(model: Path | str, *options: object) -> Iterator[Server]:
    """`mlx_lm.server` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model)]
    command += ["--port", str(port), "--log-level", "ERROR", *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < end and process.poll() is None, "mlx_lm did not begin"
                time.sleep(0.2)
        yield Server(process, url)
    finally:
        process.terminate()
        process.wait()


def with_template(folder: Path, model: str = "tiny-llama") -> Path:
    """A copy of a golden model that can chat."""
    copy = folder / f"{model}-chat"
    shutil.copytree(GOLDEN / model, copy)
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    return copy
