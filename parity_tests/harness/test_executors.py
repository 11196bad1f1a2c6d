"""Every executor gives what the tasks give; a new one is a file; what is asked for wrongly is said.

Ray's own tests are in test_ray.py, bounds in test_bounded.py.
"""

from __future__ import annotations

import os
import sys

import pytest

import harness.executors
from harness.errors import WorkerDied
from harness.executors import available, load_executor
from harness.sweep import sweep

TASKS = [{"n": n} for n in range(4)]


def square(task):
    return task["n"] ** 2


def pid(task):
    return os.getpid()


def fails_at_two(task):
    if task["n"] == 2:
        raise ValueError("two")
    return square(task)


def dies_at_two(task):
    if task["n"] == 2:
        os._exit(3)
    return square(task)


def pairs(found):
    return sorted((task["n"], result) for task, result in found)


@pytest.mark.parametrize("name", ["local", "bounded"])
def test_every_task_has_its_result(name):
    found = load_executor(name, jobs=2).run(square, TASKS[:2])
    assert pairs(found) == [(0, 0), (1, 1)]


@pytest.mark.parametrize("name", ["local", "bounded"])
def test_what_a_task_raises_is_raised(name):
    with pytest.raises(ValueError, match="two"):
        list(load_executor(name, jobs=2).run(fails_at_two, TASKS[2:]))


def test_bounded_gives_each_task_a_process_and_one_local_job_none():
    bounded = {result for _, result in load_executor("bounded", jobs=2).run(pid, TASKS[:2])}
    assert len(bounded) == 2 and os.getpid() not in bounded
    assert {result for _, result in load_executor("local").run(pid, TASKS)} == {os.getpid()}


def test_a_process_that_dies_is_an_error_that_names_its_task():
    with pytest.raises(WorkerDied, match=r"task \{'n': 2\}: its process ended with 3"):
        list(load_executor("bounded").run(dies_at_two, TASKS[2:]))
    with pytest.raises(WorkerDied, match="--executor bounded"):
        list(load_executor("local", jobs=2).run(dies_at_two, TASKS[2:]))


def test_a_new_executor_is_one_file(tmp_path, monkeypatch, command):
    (tmp_path / "back_to_front.py").write_text(
        "class Reversed:\n"
        "    def __init__(self, request): self.request = request\n"
        "    def run(self, function, tasks, bounds=None):\n"
        "        self.request.notice(f'with {self.request.argument}')\n"
        "        for task in reversed(tasks): yield task, function(task)\n"
        "load = Reversed\n"
    )
    monkeypatch.setattr(harness.executors, "__path__", [*harness.executors.__path__, str(tmp_path)])
    assert "back-to-front" in available()
    told = []
    executor = load_executor("back-to-front:care", notice=told.append)
    assert list(sweep(square, TASKS, executor=executor)) == [
        ({"n": n}, n * n) for n in (3, 2, 1, 0)
    ]
    assert told == ["with care"]
    options = "--model", "tiny-gpt2", "--executor", "back-to-front:style"
    found = command("harness", "golden", "verify", *options)
    assert found.status == 0 and found.err == "harness: with style\n"
    assert found.out == command("harness", "golden", "verify", *options[:2]).out != ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "slurm"], "there are bounded, local, ray"),
        (["--executor", "local:8"], "nothing after the colon"),
        (["--executor", "bounded:8"], "nothing after the colon"),
        (["--executor", "local", "--ray", "auto"], "give one"),
    ],
)
def test_what_cannot_be_is_one_line(command, options, message):
    found = command("harness", "golden", "verify", *options)
    assert found.status == 2 and message in found.err and found.err.count("\n") == 1


def test_without_ray_one_line_says_how_to_install_it(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    found = command("harness", "golden", "verify", "--ray", "auto")
    assert found.status == 2 and found.err.count("\n") == 1
    assert "pip install 'mlx-parity[ray]'" in found.err


def test_every_sweep_can_go_to_a_cluster(command):
    for words in (["models"], ["atlas"], ["calibrate"], ["faults", "run"], ["golden", "verify"]):
        assert "--ray" in command("harness", *words, "--help").out, words
    assert "--ray" not in command("harness", "compare", "--help").out
