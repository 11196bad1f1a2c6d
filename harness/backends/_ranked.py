"""The engine over several ranks as a side: processes that run it, and their client here.

Every rank runs `engine.EngineBackend` on its share and is told the same calls, since what passes
between ranks has to be asked for by all of them. Rank 0 answers: what it observes is whole. As a
program this module is one of the ranks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import mlx.core as mx
import numpy as np

from engine.errors import EngineError, RankLost
from engine.launch import Started, end_with_starter
from engine.ranks import join
from engine.runtime import use_device

from ..tokenizers.sides import Side
from ..types import Site, TokenFacts
from . import Observe, Request
from .engine import EngineBackend

PROGRAM = (sys.executable, "-m", __name__)
_ENDS = "HARNESS_RANK_CONNECTIONS"  # file descriptors by rank


class RankedEngine:
    """The engine over `request.ranks` processes of this machine.

    `program` is what each of them runs. What needs no numbers is answered here, by the same model,
    whole and unread. Raises RankLost when one of them ends.
    """

    name = "engine"
    sums = "mlx"
    limits: Mapping[str, str] = {}

    def __init__(self, request: Request, program: Sequence[str] = PROGRAM) -> None:
        self.dtype, self.device = request.dtype, use_device(request.device)
        self._whole = EngineBackend(request.files, request.dtype, self.device)
        pairs = [socket.socketpair() for _ in range(request.ranks)]
        theirs = [there.fileno() for _, there in pairs]
        self._started = Started(
            program, request.ranks, pass_fds=theirs, variables={_ENDS: ",".join(map(str, theirs))},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for _, there in pairs:
            there.close()
        self._connections = [Connection(here.detach()) for here, _ in pairs]
        self._end: Callable[[], Any] = weakref.finalize(
            self, _end, self._started, self._connections
        )
        self._ask("load", request)

    @property
    def blocks(self) -> int:
        return self._whole.blocks

    def forward(
        self,
        tokens: Sequence[int],
        observe: Observe | None = None,
        *,
        feed: Mapping[Site, np.ndarray] | None = None,
        inside: int | None = None,
        chunks: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See `Backend.forward`."""
        seen, logits = self._ask("forward", tokens, observe is not None, feed, inside, chunks)
        if observe is not None:
            for site, value in seen:
                observe(site, value)
        return logits

    def batch(
        self, sequences: Sequence[Sequence[int]], chunks: Sequence[int] | None = None
    ) -> list[np.ndarray] | None:
        return self._ask("batch", sequences, chunks)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        return self._ask("greedy", prompt, count)

    def weights(self) -> Mapping[str, Any]:
        """What the ranks hold, put together."""
        names: list[str] = self._ask("names")
        return {name: _unpacked(*self._ask("weight", name)) for name in names}

    def checkpoint(self) -> None:
        return None

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._whole.expected_weights(reference)

    def tokens(self, texts: Sequence[str]) -> TokenFacts:
        return self._whole.tokens(texts)

    def side(self) -> Side:
        return self._whole.side()

    def locate(self, site: Site) -> str | None:
        return self._whole.locate(site)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Have every rank do something; what rank 0 answers. Raises what any of them raises."""
        for connection in self._connections:
            try:
                connection.send((name, arguments))
            except OSError:
                raise self._lost(connection) from None
        answers: dict[Any, Any] = {}
        while len(answers) < len(self._connections):
            for connection in wait([c for c in self._connections if c not in answers]):
                try:
                    answers[connection] = connection.recv()  # type: ignore[union-attr]
                except (EOFError, OSError):
                    raise self._lost(connection) from None
        found = [answers[connection] for connection in self._connections]
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return found[0]

    def _lost(self, connection: Any) -> RankLost:
        rank, processes = self._connections.index(connection), self._started.processes
        self._started.end(1.0)
        self._end()
        return RankLost(
            f"rank {rank} of {len(processes)} has ended (status {processes[rank].returncode}): "
            "see what it said, and compare again"
        )


def _end(started: Started, connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.close()
    started.__exit__()


def _packed(array: mx.array) -> tuple[str, np.ndarray]:
    """An array as it can be sent: bfloat16 as words."""
    name = str(array.dtype).removeprefix("mlx.core.")
    return name, np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _unpacked(name: str, values: np.ndarray) -> mx.array:
    array = mx.array(values)
    return array.view(mx.bfloat16) if name == "bfloat16" else array


class _Rank:
    """What one rank does when it is asked."""

    def load(self, request: Request) -> None:
        device = use_device(request.device)
        self._engine = EngineBackend(request.files, request.dtype, device, join())

    def forward(
        self,
        tokens: Sequence[int],
        observed: bool,
        feed: Mapping[Site, np.ndarray] | None,
        inside: int | None,
        chunks: Sequence[int] | None,
    ) -> tuple[list[tuple[Site, np.ndarray]], np.ndarray]:
        seen: list[tuple[Site, np.ndarray]] = []
        observe = (lambda *pair: seen.append(pair)) if observed else None
        logits = self._engine.forward(tokens, observe, feed=feed, inside=inside, chunks=chunks)
        return seen, logits

    def batch(self, *arguments: Any) -> list[np.ndarray] | None:
        return self._engine.batch(*arguments)

    def greedy(self, *arguments: Any) -> list[int]:
        return self._engine.greedy(*arguments)

    def names(self) -> list[str]:
        self._weights = dict(self._engine.weights())
        return list(self._weights)

    def weight(self, name: str) -> tuple[str, np.ndarray]:
        return _packed(self._weights.pop(name))


def main() -> None:
    """Be the rank that the environment says, until nobody asks any more."""
    end_with_starter()
    ends = [int(end) for end in os.environ[_ENDS].split(",")]
    mine = int(os.environ["MLX_RANK"])
    for rank, end in enumerate(ends):
        if rank != mine:
            os.close(end)
    connection, rank = Connection(ends[mine]), _Rank()
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = getattr(rank, name)(*arguments)
        except EngineError as error:
            answer = error
        connection.send(answer if mine == 0 or isinstance(answer, BaseException) else None)


if __name__ == "__main__":
    main()
