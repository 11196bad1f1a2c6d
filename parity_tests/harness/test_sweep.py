"""Many tasks: results are kept as they come, and an interrupted sweep goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from harness.errors import BadOption
from harness.sweep import sweep

TASKS = [{"n": n} for n in range(6)]


def square(task):
    return task["n"] ** 2


def fails_at_three(task):
    if task["n"] == 3:
        raise ValueError("three")
    return square(task)


def pairs(found):
    return sorted((task["n"], result) for task, result in found)


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_has_its_result(jobs):
    assert pairs(sweep(square, TASKS, jobs=jobs)) == [(n, n * n) for n in range(6)]


def test_what_was_done_before_an_error_is_not_done_again(tmp_path):
    file, done = tmp_path / "done.jsonl", []
    with pytest.raises(ValueError, match="three"):
        list(sweep(fails_at_three, TASKS, resume=file))

    def counted(task):
        done.append(task["n"])
        return square(task)

    assert pairs(sweep(counted, TASKS, resume=file)) == [(n, n * n) for n in range(6)]
    assert done == [3, 4, 5]
    assert pairs(sweep(fails_at_three, TASKS, resume=file)) == [(n, n * n) for n in range(6)]


def test_a_line_that_was_cut_off_is_done_again(tmp_path):
    file = tmp_path / "done.jsonl"
    list(sweep(square, TASKS, resume=file))
    whole = file.read_text()
    file.write_text(whole[:-5])
    assert pairs(sweep(square, TASKS, resume=file)) == [(n, n * n) for n in range(6)]
    assert sorted(map(json.dumps, map(json.loads, file.read_text().splitlines()))) == sorted(
        map(json.dumps, map(json.loads, whole.splitlines()))
    )


def test_a_file_that_is_something_else_is_left_alone(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("my notes\nof today\n")
    with pytest.raises(BadOption, match="line 1"):
        list(sweep(square, TASKS, resume=file))
    assert file.read_text() == "my notes\nof today\n"


def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path):
    with pytest.raises(BadOption, match="no/such"):
        list(sweep(lambda task: pytest.fail("asked"), TASKS, resume=tmp_path / "no/such/file"))


def test_progress_counts_what_was_there_already(tmp_path):
    file, told = tmp_path / "done.jsonl", []
    list(sweep(square, TASKS[:4], resume=file))
    list(sweep(square, TASKS, resume=file, progress=lambda *given: told.append(given[:2])))
    assert told == [(4, 6), (5, 6), (6, 6)]


def naps(task):
    time.sleep(60)


def test_a_sweep_that_is_killed_leaves_no_process_behind():
    code = "from parity_tests.harness.test_sweep import *; list(sweep(naps, TASKS, jobs=2))"
    running = subprocess.Popen([sys.executable, "-c", code])
    try:
        workers = []
        for _ in range(300):
            workers = psutil.Process(running.pid).children()
            if sum("spawn_main" in " ".join(w.cmdline()) for w in workers) == 2:
                break
            time.sleep(0.1)
        time.sleep(2)  # until they are at work
        os.kill(running.pid, signal.SIGKILL)
        assert psutil.wait_procs(workers, timeout=20)[1] == []
    finally:
        running.kill()
        running.wait()
