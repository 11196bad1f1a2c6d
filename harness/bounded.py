"""One process a task, stopped where it takes too long or too much memory, which is a result too.

Slower to start than a pool, and sure: nothing that a task does to its process outlives it. Knows
nothing of what the tasks do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

Task = dict[str, Any]
LOOK = 0.2  # seconds between two looks at what runs


@dataclass(frozen=True)
class Bounds:
    """`seconds` and `memory` (bytes, of a task's process and its children) a task may take;
    `stopped(task, why)` is the result of one that took more, or whose process died."""

    seconds: float
    memory: int
    stopped: Callable[[Task, str], Any]


@dataclass
class Running:
    task: Task
    process: Any
    answers: Connection
    begun: float


def run_bounded(
    function: Callable[[Task], Any], tasks: Sequence[Task], jobs: int, bounds: Bounds
) -> Iterator[tuple[Task, Any]]:
    """Yield every task with its result, as they come. Raises what a task raised."""
    left = list(reversed(tasks))
    running: list[Running] = []
    try:
        while left or running:
            while left and len(running) < max(jobs, 1):
                running.append(_start(function, left.pop()))
            time.sleep(LOOK)
            for one in list(running):
                over, result = _look_at(one, bounds)
                if over:
                    running.remove(one)
                    yield one.task, result
    finally:
        for one in running:
            _kill(one.process)


def wait_bounded(process: subprocess.Popen, seconds: float, memory: float) -> str | None:
    """Wait for any program; why it was stopped, None where it came to its end by itself.

    It does not outlive an exception here.
    """
    begun = time.monotonic()
    try:
        while process.poll() is None:
            if why := _excess(process.pid, begun, seconds, memory):
                return why
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK)
        return None
    finally:
        if process.returncode is None:
            _kill_family(process.pid)
            process.wait()


def end_with_parent() -> None:
    """Have this process end when the one that started it is killed, and cannot tell it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a process of a sweep"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _start(function: Callable[[Task], Any], task: Task) -> Running:
    # A fresh interpreter: MLX and torch do not survive a fork.
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(function, task, theirs), daemon=True)
    process.start()
    theirs.close()
    return Running(task, process, mine, time.monotonic())


def _answer(function: Callable[[Task], Any], task: Task, answers: Connection) -> None:
    """What the process of a task does."""
    end_with_parent()
    try:
        answers.send((True, function(task)))
    except Exception as error:
        answers.send((False, error))


def _look_at(one: Running, bounds: Bounds) -> tuple[bool, Any]:
    """Whether a task is over, with its result."""
    alive = one.process.is_alive()  # asked first: what it sent before it ended is there after that
    if one.answers.poll():
        try:
            good, result = one.answers.recv()
        except EOFError:  # it ended without an answer
            alive = False
            one.process.join()
        else:
            one.process.join()
            if not good:
                raise result
            return True, result
    if not alive:
        return True, bounds.stopped(one.task, f"its process ended with {one.process.exitcode}")
    why = _excess(one.process.pid, one.begun, bounds.seconds, bounds.memory)
    if why is None:
        return False, None
    _kill(one.process)
    return True, bounds.stopped(one.task, why)


def _excess(pid: int, begun: float, seconds: float, memory: float) -> str | None:
    """What a process has taken more of than it may."""
    if time.monotonic() - begun > seconds:
        return f"it took more than {seconds:g} s"
    if (size := _memory(pid)) > memory:
        return f"it took {size / 1e9:.1f} GB of memory, {memory / 1e9:g} GB are allowed"
    return None


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(pid: int) -> int:
    total = 0
    for process in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def _kill(process: Any) -> None:
    _kill_family(process.pid)
    process.join()


def _kill_family(pid: int) -> None:
    for one in _family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
