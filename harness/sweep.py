"""Many independent tasks, resumable: what calibration, faults, models and the atlas run on.

A task is a JSON-able dict; its result, a JSON-able value, is written to a file as soon as it is
there, one line each, so that an interrupted sweep goes on where it stopped. Knows nothing of what
the tasks do, nor where they run: that is an executor's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import BadOption
from .executors import Bounds, Executor, Function, Task, load_executor

Progress = Callable[[int, "int | None", str], None]


def sweep(
    function: Function,
    tasks: Sequence[Task],
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    resume: Path | None = None,
    progress: Progress | None = None,
    bounds: Bounds | None = None,
) -> Iterator[tuple[Task, Any]]:
    """Yield every task with its result, as they come; those in `resume` without running them.

    `executor` says where, by default in `jobs` processes of this machine; `bounds` is what a task
    may take. `function` is one of a module's top level, since it may run in other processes.
    Raises what a task raised, after the results before it were written.
    """
    done = _read(resume) if resume else {}
    if resume:
        _check_writable(resume)
    tell = progress or (lambda done, total, what: None)
    count = 0
    for task in tasks:
        if _key(task) in done:
            count += 1
            yield task, done[_key(task)]
    todo = [task for task in tasks if _key(task) not in done]
    tell(count, len(tasks), "")
    runner = executor or load_executor(jobs=jobs)
    for task, result in runner.run(function, todo, bounds):
        count += 1
        if resume:
            with resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"task": task, "result": result}) + "\n")
        tell(count, len(tasks), " ".join(map(str, task.values())))
        yield task, result


def _read(path: Path) -> dict[str, Any]:
    """Results so far; a last line that was cut off counts as not there."""
    if not path.exists():
        return {}
    found = {}
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            if line:
                entry = json.loads(line)
                found[_key(entry["task"])] = entry["result"]
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise BadOption(f"{path}, line {number}, is no result of a sweep") from None
    if lines[-1]:  # what was cut off is written anew
        path.write_text("\n".join(lines[:-1]) + "\n" if len(lines) > 1 else "", encoding="utf-8")
    return found


def _check_writable(path: Path) -> None:
    """Before anything is computed that could not be kept."""
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise BadOption(f"results cannot be kept in {path}: {error.strerror}") from None


def _key(task: Task) -> str:
    return json.dumps(task, sort_keys=True)
