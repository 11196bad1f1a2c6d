"""Fuzzed requests against the server's own OpenAPI document: `python benchmarks/fuzz_server.py`.

schemathesis makes bodies that fit the document and bodies that do not, in rounds of other seeds,
until the server has given so many answers. None may be a 5xx, the process has to live, and it has
to answer right afterwards. Exit status 1 where one of these fails. Takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

from server_process import Server, engine, with_template

BODY = {"prompt": "def main(", "max_tokens": 8, "temperature": 0}
_ANSWERS = re.compile(r'engine_http_responses_total\{route="([^"]*)",status="(\d+)"\}')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=200, help="of one operation in a round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = with_template(Path(folder))
        with engine(model, "--max-tokens", 8) as server:
            before, begin, seed = answer(server), time.monotonic(), 0
            while server.alive and sum(answers(server).values()) < arguments.requests:
                fuzz(server, seed, arguments.examples, folder)
                seed += 1
            if not server.alive:
                print(f"the process has ended with {server.process.returncode}")
                return 1
            counts, seconds = answers(server), time.monotonic() - begin
            same = answer(server) == before
    statuses = Counter()
    for (_, status), count in counts.items():
        statuses[status] += count
    failed = sum(count for status, count in statuses.items() if status >= "500")
    shown = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    print(f"{sum(statuses.values())} requests in {seconds:.0f} s ({shown}), process alive,")
    print(f"{failed} server errors, answer afterwards {'as before' if same else 'ANOTHER'}")
    return int(bool(failed) or not same)


def fuzz(server: Server, seed: int, examples: int, folder: str) -> None:
    """One round of schemathesis, which writes into a folder; the server's own count says what it
    found, for its status tells of errors of its own, too."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--mode", "all"]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--workers", "4"]
    command += ["--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off"]
    subprocess.run(command, cwd=folder, capture_output=True)


def answers(server: Server) -> Counter[tuple[str, str]]:
    """How many answers there were, by route and status."""
    found = Counter()
    for name, value in server.metrics().items():
        if match := _ANSWERS.fullmatch(name):
            found[match[1], match[2]] = int(value)
    return found


def answer(server: Server) -> str:
    """The text of a request that is always the same."""
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        json.dumps(BODY).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as told:
        return json.load(told)["choices"][0]["text"]


if __name__ == "__main__":
    raise SystemExit(main())
