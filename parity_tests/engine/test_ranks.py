"""Models over several processes compute what they compute in one, over MLX's ring on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.architectures import architecture, supported
from engine.launch import Started

ROOT = Path(__file__).parents[2]
PROGRAM = "parity_tests.engine.ranked_program"
# Rounding in another order, at float32: the whole sweep stays below 2e-6, see docs/RANKS.md.
CLOSE, FAR = 1e-5, 1e-3
# Each is another way to be cut: grouped heads, fused and biased, norms over all heads, latent
# attention with shared experts, interleaved experts with biases and sinks, norms of single heads.
SAMPLE = [
    ("llama", "llama3"), ("gpt2", "plain"), ("olmo2", "plain"), ("deepseek_v3", "yarn"),
    ("gpt_oss", "plain"), ("stablelm", "parallel"),
]  # fmt: skip
# Two key/value heads, so that several ranks have the same, and uneven shares of query heads at
# three; norms over all heads are two exchanges of which neither needs the other.
SHARED_HEADS = [("olmo2", "plain")]


def run(ranks: int, *arguments: object) -> list[dict]:
    """What rank 0 prints."""
    command = [sys.executable, "-m", PROGRAM, *map(str, arguments)]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with Started(command, ranks, variables=paths, stdout=subprocess.PIPE) as started:
        with started.processes[0].stdout as stream:
            output = stream.read()
        assert started.wait() == 0
    return [json.loads(line) for line in output.splitlines()]


def check(found: list[dict], models: list) -> None:
    assert len(found) == len(models)
    for result, model in zip(found, models, strict=True):
        assert max(result["errors"]) < CLOSE, model
        assert result["same bits"] and result["same tokens"], model


def test_two_ranks_compute_what_one_does(random_model):
    found = run(2, "none", *(random_model(*model) for model in SAMPLE))
    check(found, SAMPLE)
    llama = found[0]
    assert max(llama["bytes"]) < 0.55 * llama["whole bytes"]


@pytest.mark.parametrize("ranks", [3, 4])
def test_ranks_share_the_heads_that_are_too_few(ranks, random_model):
    check(run(ranks, "none", *(random_model(*model) for model in SHARED_HEADS)), SHARED_HEADS)


@pytest.mark.parametrize("fault", ["forgotten_sum", "wrong_slice", "bias_twice"])
def test_a_fault_of_one_rank_is_seen(fault, random_model):
    """The negative control of the tests above."""
    (found,) = run(2, fault, random_model("gpt2", "plain"))
    assert max(found["errors"]) > FAR


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_of_every_variant(ranks, random_model):
    models = [(family, name) for family in supported() for name in architecture(family).TINY]
    check(run(ranks, "none", *(random_model(*model) for model in models)), models)
