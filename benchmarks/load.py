"""Concurrent streaming clients against one server: `python benchmarks/load.py`.

Each client asks one of a few prompts, reads the stream to its end and asks the next, again and
again. No request may be lost (an error, or a stream without its end), none mixed up (every greedy
answer is the one that the prompt had when it was asked alone), and memory has to stay flat: the
resident memory of the server after a quarter of the time is compared with that at the end. Exit
status 1 where one of these fails. Clients that were sent away with 429 come again, as they should.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

from server_process import GOLDEN, Server, engine

PROMPTS = [f"def f{n}(a, b):\n    return " for n in range(8)] + [
    "import os\n", "class Node:\n    def ", "for i in range(", "def main(",
]  # fmt: skip
FLAT = 1.10  # what the end may have of the memory after a quarter of the time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--model", default=str(GOLDEN / "tiny-llama"))
    arguments = parser.parse_args()
    with engine(arguments.model, "--queue", arguments.clients) as server:
        return load(server, arguments.clients, arguments.seconds, arguments.tokens)


def load(server: Server, clients: int, seconds: float, tokens: int) -> int:
    """Run the clients, print the figures; 1 where something was lost or grew."""
    expected = {prompt: stream(server.url, prompt, tokens)[0] for prompt in PROMPTS}
    assert len(set(expected.values())) > len(PROMPTS) // 2, "answers are too much alike to tell"
    counts: Counter[str] = Counter()
    firsts: list[float] = []
    lock, end = threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        n = number
        while time.monotonic() < end:
            prompt = PROMPTS[n % len(PROMPTS)]
            n += 1
            try:
                text, first = stream(server.url, prompt, tokens)
                kind = "right" if text == expected[prompt] else "mixed up"
            except Busy:
                kind, first = "sent away", None
                time.sleep(0.5)
            except (OSError, http.client.HTTPException, ValueError) as error:
                kind, first = f"lost ({type(error).__name__}: {error})", None
            with lock:
                counts[kind] += 1
                if first is not None:
                    firsts.append(first)

    before = server.metrics()["engine_generated_tokens_total"]
    begin = time.monotonic()
    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 4)
    quarter = server.metrics()["engine_resident_memory_bytes"]
    for thread in threads:
        thread.join()
    taken, after = time.monotonic() - begin, server.metrics()
    last = after["engine_resident_memory_bytes"]
    made = after["engine_generated_tokens_total"] - before
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    print(f"{clients} clients for {taken:.0f} s: {kinds}")
    print(
        f"{made / taken:.0f} tokens/s, first token after {statistics.median(firsts):.2f} s (median)"
    )
    print(
        f"resident memory {quarter / 2**20:.0f} MiB after a quarter, {last / 2**20:.0f} at the end"
    )
    running = after["engine_requests_running"] + after["engine_requests_waiting"]
    bad = [kind for kind in counts if kind not in ("right", "sent away")]
    fine = not bad and counts["right"] and last <= FLAT * quarter and not running and server.alive
    print("all answers right, memory flat, no row left behind" if fine else "FAILED")
    return int(not fine)


class Busy(Exception):
    """The server sent a client away with 429."""


def stream(url: str, prompt: str, tokens: int) -> tuple[str, float]:
    """A streamed greedy answer, and the seconds until its first piece. Raises Busy."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    begin, first, text = time.perf_counter(), None, ""
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status == 429:
            raise Busy
        if answer.status != 200:
            raise ValueError(f"status {answer.status}")
        for line in answer:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                return text, first or 0.0
            first = first or time.perf_counter() - begin
            text += json.loads(line[6:])["choices"][0]["text"]
        raise ValueError("a stream without its end")
    finally:
        connection.close()


if __name__ == "__main__":
    raise SystemExit(main())
