"""Throughput of concurrent requests, ours against mlx_lm.server: `python benchmarks/server.py`.

Both as processes on loopback with the same model, turn by turn in one run, and each asked by the
same clients for as many tokens. What is counted is tokens received, by the server's own usage, over
the time of a whole round. Target: a ratio of at least 1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from server_process import GOLDEN, ROOT, engine, mlx_lm

sys.path.insert(0, str(ROOT))
LARGER = {  # so that the model takes some of the time, on a CPU too
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", help="default: tiny-llama, and a larger random model")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = [arguments.model] if arguments.model else [GOLDEN / "tiny-llama", larger(folder)]
        for model in models:
            compare(str(model), arguments.clients, arguments.rounds, arguments.tokens)


def compare(model: str, clients: int, rounds: int, tokens: int) -> None:
    """Print the tokens/s of both servers and their ratio, round by round."""
    with engine(model, "--max-rows", clients) as ours, mlx_lm(model) as theirs:
        for server in (ours, theirs):
            rate(server.url, model, clients, tokens, -1)
        before = ours.cpu_seconds, theirs.cpu_seconds
        pairs = [
            (rate(ours.url, model, clients, tokens, n), rate(theirs.url, model, clients, tokens, n))
            for n in range(rounds)
        ]
        cpu = ours.cpu_seconds - before[0], theirs.cpu_seconds - before[1]
    ratios = sorted(a / b for a, b in pairs)
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{Path(model).name}, {clients} clients, {tokens} tokens each: {mine:.0f} tokens/s, "
        f"mlx_lm.server {other:.0f}, ratio {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}); {cpu[0]:.1f} s of CPU for theirs of {cpu[1]:.1f}",
        flush=True,
    )


def rate(url: str, model: str, clients: int, tokens: int, number: int) -> float:
    """Tokens per second of one round; prompts are other ones each round."""

    def ask(i: int) -> int:
        prompt = f"# {number} {i}\ndef f{i}(a, b):\n    return "
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        told = json.load(answer)
        assert answer.status == 200, told
        connection.close()
        return told["usage"]["completion_tokens"]

    with ThreadPoolExecutor(clients) as pool:
        begin = time.perf_counter()
        made = sum(pool.map(ask, range(clients)))
        return made / (time.perf_counter() - begin)


def larger(folder: str) -> Path:
    """A random model with tiny-llama's tokenizer."""
    from harness.random_models import config_of, write_model

    config = {**config_of("llama", "llama3"), **LARGER, "vocab_size": 512}
    path = write_model(Path(folder) / "llama-256x4", config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((GOLDEN / "tiny-llama" / name).read_bytes())
    return path


if __name__ == "__main__":
    main()
