"""Starts the ranks of one machine: the same command in several processes that find each other.

`mlx.launch` does it over many machines. For one, `--ranks N` is one word: rank 0 keeps the terminal
and its exit status is that of the command, where `mlx.launch` has none; the others are ended as
soon as one fails, and when whoever started them is gone. Nothing here imports mlx.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Who starts processes tells them by these: mlx.launch and this module, Open MPI, MPICH.
_STARTED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_STARTER = "ENGINE_RANK_STARTER"  # a pipe that ends with who started them, set by this module
FAILED = 2
_GRACE = 5.0  # seconds in which ranks that are told to end may do so
_BEHIND = 30.0  # seconds that others may take longer than rank 0


def started() -> bool:
    """Whether this process was started as one of several."""
    return any(name in os.environ for name in _STARTED)


def end_with_starter() -> None:
    """Where `Started` has started this process, have it end when who did so is gone."""
    if _STARTER not in os.environ:
        return
    pipe = int(os.environ[_STARTER])

    def read() -> None:
        with suppress(OSError):
            os.read(pipe, 1)  # nothing is ever written
        os._exit(FAILED)

    threading.Thread(target=read, name="starter", daemon=True).start()


class Started:
    """Processes of one command, rank 0 first. To be used in `with`, which ends what is left.

    `variables` go to all of them, and the files `pass_fds`; `streams` are the standard streams of
    rank 0, as `subprocess.Popen` takes them. The others have no input, and no output but errors.
    """

    def __init__(
        self,
        command: Sequence[str],
        ranks: int,
        *,
        pass_fds: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
        **streams: int,
    ) -> None:
        handle, name = tempfile.mkstemp(prefix="ranks-", suffix=".json")
        self._hosts = Path(name)
        with os.fdopen(handle, "w") as file:
            json.dump([[f"127.0.0.1:{port}"] for port in _free_ports(ranks)], file)
        self.processes: list[subprocess.Popen] = []
        alive, self._alive = os.pipe()
        others = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        for rank, own in enumerate(environments(ranks, self._hosts)):
            shown = others if rank else streams
            environment = {**os.environ, **own, **(variables or {}), _STARTER: str(alive)}
            more: dict[str, Any] = {"pass_fds": (*pass_fds, alive), **shown}
            self.processes.append(subprocess.Popen(command, env=environment, **more))
        os.close(alive)

    def keep_signals(self) -> None:
        """Leave SIGINT, which a terminal sends to all, to rank 0, and pass SIGTERM on to it."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: self.processes[0].terminate())

    def wait(self) -> int:
        """The exit status: that of rank 0, or of the first that failed, after which all end."""
        first = math.inf  # when rank 0 was seen to have ended
        while True:
            ended = {rank: p.returncode for rank, p in enumerate(self.processes) if _over(p)}
            failed = {rank: status for rank, status in ended.items() if status}
            if failed:
                # What rank 0 fails at it has said; of another's end the others have yet to say.
                self.end(0.0 if max(failed.items()) == (0, FAILED) else _GRACE)
                for rank, status in failed.items():
                    if status < 0:
                        what = f"rank {rank} of {len(self.processes)} was ended by signal {-status}"
                        print(f"engine: {what}", file=sys.stderr)
                status = next(iter(failed.values()))
                return status if status > 0 else FAILED
            if len(ended) == len(self.processes):
                return 0
            if 0 in ended:
                first = min(first, time.monotonic())
            if time.monotonic() - first > _BEHIND:
                waiting = next(rank for rank in range(len(self.processes)) if rank not in ended)
                print(f"engine: rank {waiting} did not end with rank 0", file=sys.stderr)
                self.end()
                return FAILED
            time.sleep(0.05)

    def end(self, seconds: float = 0.0) -> None:
        """End what still runs, once it has had so many seconds to end by itself."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(map(_over, self.processes)):
            time.sleep(0.05)
        for process in self.processes:
            if not _over(process):
                process.terminate()
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
            if not _over(process):
                process.kill()
                process.wait()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        os.close(self._alive)
        self._hosts.unlink(missing_ok=True)


def environments(ranks: int, hosts: Path) -> list[dict[str, str]]:
    """What each rank of this machine is told: over NCCL on a CUDA build of MLX, else over TCP.

    `hosts` is a file of addresses, for the latter. The names are those that MLX reads.
    """
    if _cuda():
        port = _free_ports(1)[0]
        common = {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(port), "MLX_WORLD_SIZE": str(ranks)}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(ranks))))
        cards = visible.split(",")
        return [
            {**common, "MLX_RANK": str(rank), "CUDA_VISIBLE_DEVICES": cards[rank % len(cards)]}
            for rank in range(ranks)
        ]
    return [{"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)} for rank in range(ranks)]


def _over(process: subprocess.Popen) -> bool:
    return process.poll() is not None


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    bound = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in bound]
    for each in bound:
        each.close()
    return ports


def _cuda() -> bool:
    """Whether MLX here is a build for NVIDIA GPUs."""
    for name in ("mlx-cuda-12", "mlx-cuda-13"):
        with suppress(importlib.metadata.PackageNotFoundError):
            return bool(importlib.metadata.version(name))
    return False
