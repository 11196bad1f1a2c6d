"""Commands over several processes of this machine, and what users see when one of them is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from engine.backend import choose_backend
from engine.errors import BackendUnavailable
from engine.files import find_model
from engine.ranks import PATIENCE

ROOT = Path(__file__).parents[3]
BOUND = 60.0  # seconds; a rank that is gone is noticed in one, and a loaded machine is slow


@pytest.fixture
def engine(tiny_llama) -> Iterator:
    """`engine(command, ...)` -> the process of a command on tiny-llama over two ranks."""
    started: list[subprocess.Popen] = []

    def run(command: str, *arguments: object, ranks: int = 2, **variables: str):
        line = [sys.executable, "-m", "engine", command, "--model", tiny_llama, *arguments]
        process = subprocess.Popen(
            [*map(str, line), "--ranks", str(ranks)],
            cwd=ROOT, env={**os.environ, **variables}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        for each in [*children(process), process]:
            if each.is_running() if isinstance(each, psutil.Process) else each.poll() is None:
                each.kill()
        process.communicate()


def children(process: subprocess.Popen) -> list[psutil.Process]:
    """The ranks."""
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


def test_two_ranks_say_what_one_says(engine, command, tiny_llama):
    """With the seed that rank 0 drew: ranks with seeds of their own would feed other tokens."""
    asked = ("--prompt", "Once upon", "--max-tokens", 8, "--temperature", 0.8)
    out, err = engine("generate", *asked).communicate(timeout=BOUND)
    seed = err.partition("seed ")[2].partition(",")[0]
    more = ("--seed", seed, "--backend", "mlx")
    assert out == command("engine", "generate", "--model", tiny_llama, *asked, *more).out
    assert "backend: mlx, which alone runs over 2 ranks" in err
    assert err.count("sampling:") == 1  # the other rank is silent


@pytest.mark.full
def test_bench_tells_the_memory_of_every_rank(engine):
    process = engine("bench", "--prompt-tokens", 4, "--tokens", 2, "--runs", 1, "--json")
    figures = json.loads(process.communicate(timeout=BOUND)[0])
    assert len(figures["memory_by_rank"]) == 2
    assert all(figures["memory_by_rank"])


def test_what_no_rank_can_do_is_said_by_rank_0(engine):
    process = engine("generate", "--prompt", "x", ranks=5)
    _, err = process.communicate(timeout=BOUND)
    said = "4 heads over 2 key/value heads are too few for 5 ranks: use 4 or fewer"
    assert process.returncode == 2
    assert next(line for line in err.splitlines() if "engine:" in line) == f"engine: {said}"
    assert "Traceback" not in err


def test_only_mlx_runs_over_ranks(tiny_llama):
    files, ranks = find_model(tiny_llama), SimpleNamespace(size=2)
    with pytest.raises(BackendUnavailable, match="torch runs in one process, and there are 2"):
        choose_backend(files, "torch", ranks=ranks)
    assert choose_backend(files, "auto", ranks=ranks).backend == "mlx"


@pytest.mark.parametrize("gone", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_rank_that_is_killed_ends_the_others(engine, gone):
    process = engine("generate", "--prompt", "x", "--max-tokens", 100_000)
    process.stdout.read(5)  # they run
    ranks = children(process)
    ranks[gone].send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=BOUND)
    assert process.returncode == 2
    assert f"engine: rank {gone} of 2 was ended by signal 9" in err
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.full
def test_a_rank_that_hangs_ends_the_others(engine):
    variables = {PATIENCE: "2"}
    process = engine("generate", "--prompt", "x", "--max-tokens", 100_000, **variables)
    process.stdout.read(5)
    ranks = children(process)
    ranks[1].suspend()
    _, err = process.communicate(timeout=BOUND)
    assert process.returncode == 2
    assert "rank 0 of 2 has waited 2 s for the others" in err
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.full
def test_ranks_end_with_who_started_them(engine):
    process = engine("generate", "--prompt", "x", "--max-tokens", 100_000)
    process.stdout.read(5)
    ranks = children(process)
    process.kill()
    deadline = time.monotonic() + BOUND
    while any(r.is_running() and r.status() != psutil.STATUS_ZOMBIE for r in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)
