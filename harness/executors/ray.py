"""Tasks on the nodes of a Ray cluster: `--ray auto`, `--ray HOST:PORT` or `--ray ray://HOST:PORT`.

Ray brings a task to a free core; there it runs in a process of its own, as `bounded.py` has it, so
that bounds hold on every node and variables stand before MLX is imported. That process first looks
whether its machine computes what this one would; a node that does not is refused, and its tasks go
elsewhere. A task whose process, worker or node dies is tried again, TRIES times in all. Nothing is
shipped but the name of a function and its task: code and models lie on the nodes. docs/CLUSTER.md.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import EngineError

from ..environment import VARIABLES
from ..errors import BadOption
from . import Bounds, Function, Notice, Request, Task
from ._machine import default_kind, describe, differences
from .bounded import Limits, Outcome, limits_of, outcomes, result_of

TRIES = 3
LOOK = 5.0  # seconds without a result, after which the nodes are looked at
GRACE = 5.0  # seconds that tasks have to end when they are cancelled
CONNECT = 5.0  # seconds
SHOWN = 3  # differences of a refused node
LINE = 300  # characters of a notice


def load(request: Request) -> OnRay:
    # Read when ray is imported; without it Ray tells stdout of the death of a node, at length.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^")
    return OnRay(request.argument or "auto", request.notice)


@dataclass(frozen=True)
class Refused:
    """In place of a result: why the machine that was to compute it is another one."""

    why: tuple[str, ...]


@dataclass(frozen=True)
class Guarded:
    """A function (pickled, since other code may not even have it) for one kind of machine only."""

    function: bytes
    machine: Mapping[str, str]
    kind: str
    folder: str

    def __call__(self, task: Task) -> Any:
        try:
            why = differences(self.machine, describe(self.kind))
        except (EngineError, ImportError) as error:
            why = [str(error)]
        if why:
            return Refused(tuple(why))
        if os.path.isdir(self.folder):  # relative names of models mean what they mean here
            os.chdir(self.folder)
        return pickle.loads(self.function)(task)


def attempt(
    given: Mapping[str, Any], variables: Mapping[str, str], task: Task, limits: Limits
) -> Outcome:
    """What a worker of Ray does with a task; `given` are the fields of a Guarded."""
    import sys

    for name in VARIABLES:  # Ray sets OMP_NUM_THREADS by itself
        os.environ.pop(name, None)
    os.environ.update(variables)
    # A spawned process runs the main file of its parent first, which here is Ray's.
    with contextlib.suppress(AttributeError):
        del sys.modules["__main__"].__file__
    ((_, outcome),) = outcomes(Guarded(**given), [task], 1, limits)
    return outcome


@dataclass
class OnRay:
    address: str
    notice: Notice | None = None
    refused: dict[str, str] = field(default_factory=dict)  # id of a node -> why
    waiting: bool = False

    def run(
        self, function: Function, tasks: Sequence[Task], bounds: Bounds | None = None
    ) -> Iterator[tuple[Task, Any]]:
        """As `Executor.run`. Raises BadOption without ray, without a cluster, and where none of
        its nodes is like this machine."""
        if not tasks:
            return
        with _connected(self.address) as ray:
            kind = default_kind()
            machine = describe(kind)
            given = {
                "function": pickle.dumps(function),
                "machine": machine,
                "kind": kind,
                "folder": os.getcwd(),
            }
            variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
            needed = {"CPU": 1, "GPU": int(machine["the device class"].startswith("cuda"))}
            # Tries are counted here, where every kind of death counts.
            remote = ray.remote(max_retries=0, num_cpus=needed["CPU"], num_gpus=needed["GPU"])(
                _shippable()
            )
            pending: dict[Any, tuple[Task, int]] = {}

            def submit(task: Task, tries: int) -> None:
                others = {"ray.io/node-id": f"!in({','.join(self.refused)})"}
                at = remote.options(label_selector=others) if self.refused else remote
                ref = at.remote(given, variables, task, limits_of(bounds))
                pending[ref] = (task, tries)

            try:
                for task in tasks:
                    submit(task, 1)
                while pending:
                    done, _ = ray.wait(list(pending), timeout=LOOK)
                    if not done:
                        self._check_nodes(ray, needed)
                    for ref in done:
                        task, tries = pending.pop(ref)
                        node, outcome = _answer(ray, ref)
                        if isinstance(outcome.result, Refused):
                            self._refuse(ray, node, outcome.result)
                            self._check_nodes(ray, needed)
                            submit(task, tries)
                        elif outcome.died and tries < TRIES:
                            self._tell(f"try {tries + 1} of {TRIES}, {outcome.stopped}: {task}")
                            submit(task, tries + 1)
                        else:
                            yield task, result_of(task, outcome, bounds)
            finally:
                _cancel(ray, list(pending))

    def _refuse(self, ray: Any, node: str, refused: Refused) -> None:
        """Use a node no more, and say so once."""
        if node in self.refused:
            return
        shown = "; ".join(refused.why[:SHOWN])
        more = f"; and {len(refused.why) - SHOWN} more" if len(refused.why) > SHOWN else ""
        where = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes()}.get(node, "?")
        self.refused[node] = f"node {where} ({node[:8]}): {shown}{more}"
        self._tell(f"refused, and left out: {self.refused[node]}")

    def _check_nodes(self, ray: Any, needed: Mapping[str, int]) -> None:
        """Raise BadOption where every node that could run a task is refused; say it once where
        there is no such node yet, which Ray does not."""
        able = [
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and all(node["Resources"].get(k, 0) >= n for k, n in needed.items())
        ]
        if set(able) - set(self.refused):
            return
        if able:
            raise BadOption(
                f"--ray {self.address}: no node computes what this machine does: "
                f"{self.refused[able[-1]]}; see docs/CLUSTER.md"
            )
        if not self.waiting:
            wanted = ", ".join(f"{n} {name}" for name, n in needed.items() if n)
            self._tell(f"no node of the cluster has {wanted}: waiting for one")
        self.waiting = True

    def _tell(self, text: str) -> None:
        if self.notice:
            self.notice(text if len(text) <= LINE else f"{text[: LINE - 3]}...")


def _shippable() -> Any:
    """What Ray carries to a node. Made inside a function, so that it goes by value and arrives
    where there is no harness, or another one."""

    def attempt_here(*arguments: Any) -> tuple[str, Any]:
        import importlib

        node = importlib.import_module("ray").get_runtime_context().get_node_id()
        try:
            from harness.executors.ray import attempt

            return node, attempt(*arguments)
        except (ImportError, AttributeError, TypeError) as error:
            return node, f"it has another harness, or none ({type(error).__name__}: {error})"

    return attempt_here


def _answer(ray: Any, ref: Any) -> tuple[str, Outcome]:
    """The node of a task and how it ended; a dead worker or node is an end like others."""
    try:
        node, outcome = ray.get(ref)
    except ray.exceptions.RayTaskError:
        raise  # of this module
    except ray.exceptions.RayError as error:
        why = str(error).strip().split("\n")[0].split(". ")[0]
        return "", Outcome(stopped=f"its worker was lost: {why}", died=True)
    if isinstance(outcome, str):
        return node, Outcome(Refused((outcome,)))
    return node, outcome


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; one that was connected before stays so."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise BadOption(
            f"--ray {address}: ray is not installed: pip install 'mlx-parity[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
        why = str(error).strip().split("\n")[0]
        raise BadOption(
            f"--ray {address}: no cluster can be joined there ({why}): start one with "
            "ray start --head, see docs/CLUSTER.md"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes where nobody listens."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
    except OSError as error:
        raise BadOption(
            f"--ray {address}: nobody listens there ({error.strerror or error}): start a cluster "
            "with ray start --head, see docs/CLUSTER.md"
        ) from None


def _cancel(ray: Any, pending: list[Any]) -> None:
    """End what runs: a worker is interrupted, and ends the process of its task."""
    if not pending:
        return
    with contextlib.suppress(ray.exceptions.RayError, ConnectionError):
        for ref in pending:
            ray.cancel(ref)
        ray.wait(pending, num_returns=len(pending), timeout=GRACE)
