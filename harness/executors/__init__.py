"""Where the tasks of a sweep run: one file per executor, found by scanning this folder.

A file has `load(request: Request) -> Executor`. Its module name is the executor's name on the
command line, with `_` for `-`; what follows a colon (`ray:HOST:PORT`) is passed on. A task and its
result are JSON-able. Nothing here knows what tasks do, or that results are kept.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import BadOption

Task = dict[str, Any]
Function = Callable[[Task], Any]
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Bounds:
    """`seconds` and `memory` (bytes, of a task's process and its children) a task may take;
    `stopped(task, why)` is the result of one that took more, or whose process died."""

    seconds: float
    memory: int
    stopped: Callable[[Task, str], Any]


@dataclass(frozen=True)
class Request:
    """What an executor is made from.

    `argument` is what follows the colon of its name, `jobs` how many tasks may run at once on this
    machine; `notice` is told what a user should know and no result says.
    """

    jobs: int = 1
    argument: str = ""
    notice: Notice | None = None


class Executor(Protocol):
    """Runs tasks, each of them once as far as anybody can tell."""

    def run(
        self, function: Function, tasks: Sequence[Task], bounds: Bounds | None = None
    ) -> Iterator[tuple[Task, Any]]:
        """Yield every task with its result, as they come.

        `function` is one of a module's top level, since it may run in another process. A task that
        goes beyond `bounds` is stopped, and `bounds.stopped` is its result; without bounds the
        death of its process raises WorkerDied. Raises what a task raised. Whatever still runs when
        the iterator is closed is ended.
        """
        ...


def available() -> list[str]:
    """Executors by name, as they are typed."""
    names = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def load_executor(name: str = "local", *, jobs: int = 1, notice: Notice | None = None) -> Executor:
    """The executor of a name, `NAME` or `NAME:ARGUMENT`; BadOption lists the names there are."""
    head, _, argument = name.partition(":")
    if head not in available():
        raise BadOption(f"executor {name!r}: there are {', '.join(available())}")
    module = importlib.import_module(f"{__name__}.{head.replace('-', '_')}")
    return module.load(Request(jobs, argument, notice))
