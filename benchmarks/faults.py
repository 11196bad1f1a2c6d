"""Faults against real servers, and what became of them: `python benchmarks/faults.py`.

Clients that vanish or read nothing, requests that are none, too many at once, a disk or a table
of files that is full, kill -9, models that are broken. Each is served or refused in one clear line;
the process lives, with no row left behind, and answers afterwards as it did before. Exit status 1
where one of these fails. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from asking import abort, ask, connected, everything, head, post
from server_process import ROOT, Server, engine, serve_command, with_template

PATH = "/v1/completions"
SHORT = {"prompt": "def main(", "max_tokens": 8, "temperature": 0}
LONG = {**SHORT, "max_tokens": 4000, "ignore_eos": True, "stream": True}
SCHEMA = {"type": "object", "properties": {"a": {"not": {}}}}
CHAT = {"messages": [{"role": "user", "content": "x"}]}
ROWS, QUEUE = 8, 16

# What became of a fault, and whether that is as it should be.
Seen = tuple[str, bool]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200, help="that come at once or vanish")
    clients = parser.parse_args().clients
    fine = True
    with tempfile.TemporaryDirectory() as folder:
        model = with_template(Path(folder))
        print("one server after another fault:")
        with engine(model, "--max-rows", ROWS, "--queue", QUEUE) as server:
            usual = answer(server)
            for name, fault in MET.items():
                fine &= show(name, *fault(server, clients), state(server, usual))
        print("a server of its own for each:")
        for name, fault in ALONE.items():
            fine &= show(name, *fault(model, usual))
    print("all served or refused, every process as it should be" if fine else "FAILED")
    return int(not fine)


def show(name: str, what: str, right: bool, state: Seen = ("", True)) -> bool:
    """Print a line; whether all is as it should be."""
    fine = right and state[1]
    print(f"  {'ok  ' if fine else 'FAIL'} {name:<34} {what}{state[0]}", flush=True)
    return fine


def state(server: Server, usual: str) -> Seen:
    """How a server is once rows are free, for which it has ten seconds."""
    end = time.monotonic() + 10
    while (busy := rows(server)) and time.monotonic() < end:
        time.sleep(0.05)
    same = server.alive and answer(server) == usual
    memory = server.metrics()["engine_resident_memory_bytes"] / 2**20
    words = f"; {memory:.0f} MiB" if same and not busy else "; ANOTHER ANSWER OR ROWS LEFT BEHIND"
    return words, same and not busy


# What a server meets while it runs


def vanishing(server: Server, clients: int) -> Seen:
    """Clients that are gone once they have read something, without a goodbye."""
    before = server.metrics()["engine_cancelled_total"]
    counts: Counter[str] = Counter()

    def client(_: int) -> None:
        with connected(server) as connection:
            connection.sendall(post(PATH, LONG))
            counts["told" if b"data: " in head(connection) else "sent away"] += 1
            abort(connection)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(clients)))
    end = time.monotonic() + 10
    while rows(server) and time.monotonic() < end:
        time.sleep(0.05)
    freed = int(server.metrics()["engine_cancelled_total"] - before)
    told = f"{counts['told']} of {clients} were told something, {freed} rows freed"
    return told, 0 < counts["told"] == freed


def slow(server: Server, clients: int) -> Seen:
    """Readers that read nothing of long answers, and others who ask meanwhile."""
    with ExitStack() as stack:
        for _ in range(ROWS - 1):
            stack.enter_context(connected(server)).sendall(post(PATH, LONG))
        time.sleep(0.3)
        statuses = Counter(ask(server, SHORT, PATH)[0] for _ in range(20))
    return f"{ROWS - 1} read nothing, others got {shown(statuses)}", statuses == {200: 20}


def halves(server: Server, clients: int) -> Seen:
    """Requests that stop in their head or their body, and stay, while others ask."""
    whole = post(PATH, SHORT)
    with ExitStack() as stack:
        for n in range(clients):
            connection = stack.enter_context(connected(server))
            connection.sendall(whole[: 20 if n % 2 else -5])
        statuses = Counter(ask(server, SHORT, PATH)[0] for _ in range(20))
    return f"{clients} half requests, others got {shown(statuses)}", statuses == {200: 20}


def nonsense(server: Server, clients: int) -> Seen:
    """Bytes that are no HTTP, bodies that are no JSON or no request, and what cannot be had."""
    bodies: list[tuple[str, Any]] = [
        (PATH, b"{"), (PATH, b"[" * 100_000), (PATH, b"\xff\xfe"), (PATH, {"prompt": [-1]}),
        (PATH, {"prompt": "x", "max_tokens": 10**9}), (PATH, {"prompt": "x", "nonsense": 1}),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "regex", "pattern": "("}}),
        ("/v1/chat/completions", {**CHAT, "response_format": {
            "type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
        ("/v1/messages", {"model": "", "messages": [], "max_tokens": 1}),
        ("/api/generate", {"model": "default"}),
    ]  # fmt: skip
    told = [ask(server, body, path) for path, body in bodies]
    lines = [line for _, line in told if line and "\n" not in line and len(line) < 400]
    with connected(server) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        strange = head(connection).split(b" ", 2)[1:2]
    statuses = Counter(status for status, _ in told)
    right = statuses == {400: len(bodies)} and len(lines) == len(bodies) and strange == [b"400"]
    return f"{len(bodies)} bodies got {shown(statuses)}, each a line; no HTTP got 400", right


def giants(server: Server, clients: int) -> Seen:
    """Bodies of more than the limit, told beforehand or not."""
    big = json.dumps({"prompt": "x" * (9 << 20)}).encode()
    statuses = Counter([ask(server, big, PATH)[0], ask(server, iter([big]), PATH)[0]])
    return f"9 MiB got {shown(statuses)}", statuses == {413: 2}


def rush(server: Server, clients: int) -> Seen:
    """More requests at once than rows and queue have room for."""
    body = {**SHORT, "max_tokens": 64, "ignore_eos": True}
    with ThreadPoolExecutor(clients) as pool:
        statuses = Counter(
            s for s, _ in pool.map(lambda _: ask(server, body, PATH), range(clients))
        )
    right = set(statuses) <= {200, 429} and statuses[200] >= ROWS + QUEUE
    return f"{clients} at once got {shown(statuses)}", right


MET: dict[str, Callable[[Server, int], Seen]] = {
    "clients that vanish": vanishing,
    "readers that read nothing": slow,
    "requests that stop half way": halves,
    "nonsense": nonsense,
    "bodies that are too large": giants,
    "too many at once": rush,
}


# What needs a process of its own


def without_room(model: Path, usual: str) -> Seen:
    """No file can be written: not the log, not a cache, nothing in the temporary folder."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    with (
        tempfile.TemporaryFile() as log,
        engine(model, preexec_fn=limit, stderr=log) as server,
    ):
        same = answer(server) == usual
        return (
            f"{'served' if same else 'ANOTHER ANSWER'}, {ended(server)}",
            same and not server.alive,
        )


def without_files(model: Path, usual: str) -> Seen:
    """More connections than the process may have files, then none."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    with engine(model, preexec_fn=limit, stderr=subprocess.DEVNULL) as server:
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(connected(server))
            time.sleep(1)
            alive = server.alive
        told = answer(server)
        return (
            f"64 files, 100 connections: {'served afterwards' if alive else 'DEAD'}",
            told == usual,
        )


def killed(model: Path, usual: str) -> Seen:
    """kill -9 amid answers, and another server on the same port at once."""
    with engine(model) as server:
        port = urlsplit(server.url).port
        with connected(server) as connection:
            connection.sendall(post(PATH, LONG))
            head(connection)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            rest = everything(connection)
    with engine(model, "--port", port) as server:
        same = answer(server) == usual
    words = "the stream broke off, the next server answers on its port"
    return words, same and b"[DONE]" not in rest


def told_to_stop(model: Path, usual: str) -> Seen:
    """SIGTERM amid answers."""
    with engine(model, stderr=subprocess.DEVNULL) as server:
        with connected(server) as connection:
            connection.sendall(post(PATH, {**LONG, "max_tokens": 300}))
            head(connection)
            status = ended(server)
            rest = everything(connection)
        return f"the stream came to its end, {status}", b"[DONE]" in rest and not server.alive


def corrupt(model: Path, usual: str) -> Seen:
    """Models with something wrong."""

    def cut(name: str) -> Callable[[Path], object]:
        return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    faults: dict[str, Callable[[Path], object]] = {
        "weights": cut("model.safetensors"),
        "no weights": lambda folder: (folder / "model.safetensors").unlink(),
        "config": cut("config.json"),
        "tokenizer": cut("tokenizer.json"),
    }
    refused = []
    for name, break_it in faults.items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "broken"
            shutil.copytree(model, folder)
            break_it(folder)
            refused += [name] if refuses(folder) else []
    return f"refused in one line: {', '.join(refused)}", len(refused) == len(faults)


def no_template(model: Path, usual: str) -> Seen:
    """A chat template that is none."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "broken"
        shutil.copytree(model, folder)
        (folder / "chat_template.jinja").write_text("{% for %}")
        with engine(folder) as server:
            status, line = ask(server, CHAT, "/v1/chat/completions")
            right = status == 400 and "TemplateSyntaxError" in line and answer(server) == usual
    return "chats are refused in one line, completions served", right


def occupied(model: Path, usual: str) -> Seen:
    """A port that another server has."""
    with engine(model) as server:
        same = refuses(model, "--port", urlsplit(server.url).port) and answer(server) == usual
    return "refused in one line, the other serves on", same


ALONE: dict[str, Callable[[Path, str], Seen]] = {
    "nothing can be written": without_room,
    "no more files": without_files,
    "kill -9 and another start": killed,
    "SIGTERM": told_to_stop,
    "broken models": corrupt,
    "a broken template": no_template,
    "an occupied port": occupied,
}


def answer(server: Server) -> str:
    """The text of a request that is always the same."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request("POST", PATH, json.dumps(SHORT), {"Content-Type": "application/json"})
    text = json.load(connection.getresponse())["choices"][0]["text"]
    connection.close()
    return text


def rows(server: Server) -> float:
    """Requests that run or wait."""
    told = server.metrics()
    return told["engine_requests_running"] + told["engine_requests_waiting"]


def ended(server: Server) -> str:
    """How a server ends that is told to."""
    server.process.terminate()
    return f"ended with {server.process.wait(30)}"


def refuses(model: Path, *options: object) -> bool:
    """Whether a server does not begin and says why in a line."""
    command = serve_command(model, *options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    line = done.stderr.splitlines()[-1:] or [""]
    return (
        done.returncode == 2 and line[0].startswith("engine: ") and "Traceback" not in done.stderr
    )


def shown(statuses: Counter[int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))


if __name__ == "__main__":
    raise SystemExit(main())
