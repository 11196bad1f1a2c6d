"""`engine bench`: the runs that count, their figures, and what cannot be measured."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from engine.bench import bench

pytestmark = pytest.mark.usefixtures("certificates")
ARGUMENTS = ("--model", "tiny-llama", "--prompt-tokens", 8, "--tokens", 4, "--runs", 3)


def scripted(seconds: list[float], prompts: list) -> SimpleNamespace:
    """A backend whose runs take the time that is written for them."""
    left = iter(seconds)

    def generate(prompt, max_tokens, *, stop=(), timing):
        prompts.append(tuple(prompt))
        timing.prompt_tokens, timing.prompt_seconds = len(prompt), (each := next(left))
        timing.tokens, timing.first = max_tokens, 0.0
        timing.last = each * (max_tokens - 1)
        return iter(range(max_tokens))

    return SimpleNamespace(vocab=50, generate=generate, peak_memory=lambda: 123)


def test_the_middle_of_the_runs_after_the_first():
    prompts: list = []
    figures = bench(scripted([100.0, 1.0, 4.0, 2.0], prompts), 8, 5, 3)
    assert (figures.first.low, figures.first.median, figures.first.high) == (1.0, 2.0, 4.0)
    assert figures.prefill.median == 4.0 and figures.decode.median == 0.5
    assert figures.memory == 123
    assert len(prompts) == 4 and len(set(prompts)) == 1 and len(prompts[0]) == 8
    assert all(0 <= token < 50 for token in prompts[0])


def test_one_token_has_no_decode_speed():
    assert bench(scripted([1.0, 1.0], []), 8, 1, 1).decode is None


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_the_command_prints_a_table_and_json(command, backend):
    shown = command("engine", "bench", *ARGUMENTS, "--backend", backend)
    assert shown.status == 0 and "8 + 4 tokens, 3 runs; peak memory" in shown.out
    for word in ("prefill", "decode", "time to first token", "tokens/s", "ms"):
        assert word in shown.out
    assert shown.err.splitlines()[-1].startswith(f"backend={backend} device=")
    figures = json.loads(
        command("engine", "bench", *ARGUMENTS, "--json", *("--backend", backend)).out
    )
    assert figures["backend"] == backend and figures["decode"]["median"] > 0
    assert figures["first"]["low"] <= figures["first"]["median"] <= figures["first"]["high"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--prompt-tokens", 300), "--prompt-tokens 300"),
        (("--prompt-tokens", 200, "--tokens", 100), "no positions for more than 256"),
        (("--runs", 0), "runs"),
    ],
)
@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_more_than_the_model_has_positions_for_is_told(command, options, words, backend):
    result = command("engine", "bench", "--model", "tiny-gpt2", *options, "--backend", backend)
    assert result.status == 2 and words in result.err.splitlines()[-1]
