"""A task that takes too much is stopped, and is a result; the others have theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from harness.executors import Bounds
from harness.executors.bounded import wait_bounded
from harness.sweep import sweep

BOUNDS = Bounds(seconds=60, memory=2_000_000_000, stopped=lambda task, why: f"stopped: {why}")


def does(task):
    if task["what"] == "sleep":
        time.sleep(60)
    if task["what"] == "eat":
        eaten = bytearray(os.urandom(1) * 900_000_000)
        time.sleep(60)
        return len(eaten)
    if task["what"] == "die":
        os._exit(3)
    if task["what"] == "raise":
        raise ValueError("raised")
    return task["what"]


def results(*what, bounds=BOUNDS, **more):
    found = sweep(does, [{"what": w} for w in what], jobs=2, bounds=bounds, **more)
    return {task["what"]: result for task, result in found}


def test_within_bounds_a_sweep_is_what_it_is_without():
    assert results("a", "b", "c") == dict(sweep_pairs("a", "b", "c"))


def sweep_pairs(*what):
    return [(task["what"], result) for task, result in sweep(does, [{"what": w} for w in what])]


def test_what_takes_too_long_is_stopped_and_the_rest_is_done(tmp_path):
    bounds = Bounds(5, 2_000_000_000, BOUNDS.stopped)
    file = tmp_path / "done.jsonl"
    begun = time.monotonic()
    found = results("sleep", "a", bounds=bounds, resume=file)
    assert found == {"sleep": "stopped: it took more than 5 s", "a": "a"}
    assert time.monotonic() - begun < 50
    assert results("sleep", "a", resume=file) == found  # a stopped task is not begun anew


def test_what_takes_too_much_memory_is_stopped():
    found = results("eat", "a", bounds=Bounds(60, 600_000_000, BOUNDS.stopped))
    assert found["eat"].startswith("stopped: it took ") and "0.6 GB are allowed" in found["eat"]
    assert found["a"] == "a"


def test_a_process_that_dies_is_a_result():
    assert results("die", "a") == {"die": "stopped: its process ended with 3", "a": "a"}


def test_what_a_task_raises_is_raised():
    with pytest.raises(ValueError, match="raised"):
        results("raise")


def program(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code])


def test_a_program_within_bounds_ends_by_itself():
    process = program("raise SystemExit(7)")
    assert wait_bounded(process, 60, 2_000_000_000) is None and process.returncode == 7


def test_a_program_that_takes_too_much_is_stopped_with_what_it_started():
    child = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', "
    child += "'import time; time.sleep(60)'])"
    process = program(child)
    assert wait_bounded(process, 1, 2_000_000_000) == "it took more than 1 s"
    assert process.returncode == -9
    eats = program("import time; eaten = b'x' * 300_000_000; time.sleep(60)")
    assert "0.2 GB are allowed" in (wait_bounded(eats, 60, 200_000_000) or "")


def test_a_program_does_not_outlive_an_interruption(monkeypatch):
    process = program("import time; time.sleep(60)")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.executors.bounded._excess", interrupt)
    with pytest.raises(KeyboardInterrupt):
        wait_bounded(process, 60, 2_000_000_000)
    assert process.returncode == -9
