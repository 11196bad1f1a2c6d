"""One process a task, stopped where it takes too long or too much memory, which is a result too.

Slower to start than a pool, and sure: nothing that a task does to its process outlives it. Knows
nothing of what the tasks do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

from ..errors import BadOption, WorkerDied
from . import Bounds, Function, Request, Task

LOOK = 0.2  # seconds between two looks at what runs
Limits = tuple[float, int]  # seconds, bytes
UNLIMITED: Limits = (float("inf"), 2**63)


def load(request: Request) -> Bounded:
    if request.argument:
        raise BadOption(
            f"executor bounded:{request.argument}: bounded takes nothing after the colon"
        )
    return Bounded(request.jobs)


@dataclass(frozen=True)
class Bounded:
    jobs: int = 1

    def run(
        self, function: Function, tasks: Sequence[Task], bounds: Bounds | None = None
    ) -> Iterator[tuple[Task, Any]]:
        for task, outcome in outcomes(function, tasks, self.jobs, limits_of(bounds)):
            yield task, result_of(task, outcome, bounds)


@dataclass(frozen=True)
class Outcome:
    """How a task ended: with a `result`, with what it raised, or because it was `stopped` for a
    reason; `died` says that nobody stopped it."""

    result: Any = None
    error: Exception | None = None
    stopped: str | None = None
    died: bool = False


@dataclass
class Running:
    task: Task
    process: Any
    answers: Connection
    begun: float


def limits_of(bounds: Bounds | None) -> Limits:
    return UNLIMITED if bounds is None else (bounds.seconds, bounds.memory)


def result_of(task: Task, outcome: Outcome, bounds: Bounds | None) -> Any:
    """What the sweep is told. Raises what the task raised, and WorkerDied without bounds."""
    if outcome.error is not None:
        raise outcome.error
    if outcome.stopped is None:
        return outcome.result
    if bounds is None:
        raise WorkerDied(f"task {task}: {outcome.stopped}")
    return bounds.stopped(task, outcome.stopped)


def outcomes(
    function: Function, tasks: Sequence[Task], jobs: int, limits: Limits
) -> Iterator[tuple[Task, Outcome]]:
    """Yield how every task ended, as they end."""
    left = list(reversed(tasks))
    running: list[Running] = []
    try:
        while left or running:
            while left and len(running) < max(jobs, 1):
                running.append(_start(function, left.pop()))
            time.sleep(LOOK)
            for one in list(running):
                outcome = _look_at(one, limits)
                if outcome is not None:
                    running.remove(one)
                    yield one.task, outcome
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


def _start(function: Function, task: Task) -> Running:
    # A fresh interpreter: MLX and torch do not survive a fork.
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(function, task, theirs), daemon=True)
    process.start()
    theirs.close()
    return Running(task, process, mine, time.monotonic())


def _answer(function: Function, task: Task, answers: Connection) -> None:
    """What the process of a task does."""
    end_with_parent()
    try:
        answers.send((True, function(task)))
    except Exception as error:
        answers.send((False, error))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of MLX can abort an orderly exit


def _look_at(one: Running, limits: Limits) -> Outcome | None:
    """How a task ended; None where it goes on."""
    alive = one.process.is_alive()  # asked first: what it sent before it ended is there after that
    if one.answers.poll():
        try:
            good, result = one.answers.recv()
        except EOFError:  # it ended without an answer
            alive = False
            one.process.join()
        else:
            one.process.join()
            return Outcome(result) if good else Outcome(error=result)
    if not alive:
        return Outcome(stopped=f"its process ended with {one.process.exitcode}", died=True)
    why = _excess(one.process.pid, one.begun, *limits)
    if why is None:
        return None
    _kill(one.process)
    return Outcome(stopped=why)


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
