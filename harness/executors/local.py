"""Processes of this machine that take one task after the other; one job runs in this very process.

With bounds each task has a process of its own, as `bounded.py` has it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from ..errors import BadOption, WorkerDied
from . import Bounds, Function, Request, Task
from .bounded import Bounded, end_with_parent


def load(request: Request) -> Local:
    if request.argument:
        raise BadOption(f"executor local:{request.argument}: local takes nothing after the colon")
    return Local(request.jobs)


@dataclass(frozen=True)
class Local:
    jobs: int = 1

    def run(
        self, function: Function, tasks: Sequence[Task], bounds: Bounds | None = None
    ) -> Iterator[tuple[Task, Any]]:
        if bounds is not None:
            yield from Bounded(self.jobs).run(function, tasks, bounds)
        elif self.jobs <= 1:
            for task in tasks:
                yield task, function(task)
        else:
            yield from self._pooled(function, tasks)

    def _pooled(self, function: Function, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        # A fresh interpreter each: MLX and torch do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            self.jobs, mp_context=context, initializer=end_with_parent
        ) as pool:
            pending = {pool.submit(function, task): task for task in tasks}
            try:
                for future in as_completed(pending):
                    yield pending[future], future.result()
            except BrokenProcessPool:
                raise WorkerDied(
                    "a process of the sweep died (killed, or out of memory): --executor bounded "
                    "gives each task its own and says which; --resume keeps what was done"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)
