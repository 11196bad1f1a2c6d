"""Every load and every forward of a comparison, written down as it happens, with what it took.

Two forwards are one where the same side with the same weights, at the same dtype, is given the same
tokens in the same way: bare, watched, fed in isolated mode, in pieces, in a batch, or greedily.
Backends are watched from outside, by their methods; nothing in the harness knows of this.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import process_time as clock  # of all threads: others on the machine do not count
from typing import Any

import numpy as np

CANDIDATE, TWIN, ORACLE = "candidate", "reference", "oracle"
# The one check that asks whether a second run gives the same: there a repetition is the question.
REPEATS = "repeat"


@dataclass(frozen=True)
class Forward:
    """One run of a model. `tokens` has a row for each sequence, `fed` is a digest of the inputs of
    isolated mode; `model` is one of the digests of weights."""

    side: str
    dtype: str
    model: str
    mode: str
    tokens: tuple[tuple[int, ...], ...]
    chunks: tuple[int, ...] | None = None
    count: int = 0  # greedy tokens
    fed: str = ""
    watched: bool = False

    @property
    def length(self) -> int:
        return sum(map(len, self.tokens)) + self.count

    @property
    def what(self) -> tuple[Any, ...]:
        """What makes two forwards one. Watching is a question of its own of a candidate alone."""
        watched = self.watched and self.side == CANDIDATE
        return (
            self.side, self.dtype if self.side != ORACLE else "", self.model, self.mode,
            self.tokens, self.chunks, self.count, self.fed, watched,
        )  # fmt: skip


@dataclass(frozen=True)
class Load:
    """One model brought into memory; an oracle of the same weights is the same at any dtype."""

    side: str
    dtype: str
    model: str

    @property
    def what(self) -> tuple[str, str, str]:
        return self.side, self.dtype if self.side != ORACLE else "", self.model


@dataclass
class Ledger:
    """`forwards` and `loads` in the order they were made, each with the check that made it, and
    its seconds of the processor; `stages` has those of every check, and of what comes before, and
    `measured` those spent inside observers. Without `digests`, which take their time, nothing can
    be told twice."""

    digests: bool = True

    forwards: list[tuple[Forward, str, float]] = field(default_factory=list)
    loads: list[tuple[Load, str, float]] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    stages: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    asking: str = "load"
    since: float = field(default_factory=clock)

    def tell(self, done: int, total: int | None, what: str) -> None:
        """As the `progress` of a comparison, which says what is asked."""
        if total is None:
            self.end()
            self.asking = what.partition(",")[0]

    def end(self) -> None:
        """What was asked is answered."""
        now = clock()
        self.stages[self.asking] += now - self.since
        self.since = now

    def needed(self) -> tuple[list[Load], list[Forward]]:
        """Each distinct load and forward once, and those that are the question of `repeat`."""
        loads = list({load.what: load for load, *_ in reversed(self.loads)}.values())[::-1]
        forwards, known = [], set()
        for forward, check, _ in self.forwards:
            if forward.what not in known or check == REPEATS:
                forwards.append(forward)
            known.add(forward.what)
        return loads, forwards

    def twice(self) -> list[tuple[Forward | Load, str, str]]:
        """What an earlier one would have served: what, for which check, and by which."""
        found: list[tuple[Forward | Load, str, str]] = []
        first: dict[Any, str] = {}
        for each, check, _ in (*self.loads, *self.forwards):
            if each.what in first and check != REPEATS:
                found.append((each, check, first[each.what]))
            first.setdefault(each.what, check)
        return found


@contextlib.contextmanager
def watching(ledger: Ledger, candidate: type, reference: type | None = None) -> Iterator[None]:
    """Write down what backends of one or two classes do."""
    with contextlib.ExitStack() as stack:
        for kind in (candidate, reference) if reference else (candidate,):
            for name in ("__init__", "forward", "batch", "greedy"):
                original = getattr(kind, name)
                side = CANDIDATE if kind is candidate else TWIN
                wrapped = _WRAP[name](ledger, original, side)
                setattr(kind, name, wrapped)
                stack.callback(setattr, kind, name, original)
        yield


def _load(ledger: Ledger, original: Callable[..., Any], side: str) -> Callable[..., None]:
    def load(self: Any, *args: Any, **options: Any) -> None:
        begin = clock()
        original(self, *args, **options)
        seconds = clock() - begin
        self.ledger_side = ORACLE if options.get("lifts") is not None else side
        self.ledger_model = _digest_of_weights(self) if ledger.digests else ""
        run = Load(self.ledger_side, self.dtype, self.ledger_model)
        ledger.loads.append((run, ledger.asking, seconds))

    return load


def _forward(ledger: Ledger, original: Callable[..., Any], side: str) -> Callable[..., Any]:
    def forward(self: Any, tokens: Any, observe: Any = None, **options: Any) -> Any:
        feed, chunks = options.get("feed"), options.get("chunks")
        mode = "isolated" if feed is not None else "in pieces" if chunks else "propagated"
        if options.get("inside") is not None:
            mode = f"{mode}, inside block {options['inside']}"
        inner = 0.0

        def watched(site: Any, array: Any) -> None:
            nonlocal inner
            begin = clock()
            observe(site, array)
            inner += clock() - begin

        run = Forward(
            self.ledger_side, self.dtype, self.ledger_model, mode, (tuple(tokens),),
            tuple(chunks) if chunks else None, 0, _digest(feed) if ledger.digests else "",
            observe is not None,
        )  # fmt: skip
        begin = clock()
        found = original(self, tokens, None if observe is None else watched, **options)
        seconds = clock() - begin - inner
        ledger.forwards.append((run, ledger.asking, seconds))
        ledger.measured[ledger.asking] += inner
        return found

    return forward


def _batch(ledger: Ledger, original: Callable[..., Any], side: str) -> Callable[..., Any]:
    def batch(self: Any, sequences: Any, chunks: Any = None) -> Any:
        begin = clock()
        found = original(self, sequences, chunks)
        rows = tuple(map(tuple, sequences))
        run = Forward(
            self.ledger_side, self.dtype, self.ledger_model, "batch", rows,
            tuple(chunks) if chunks else None,
        )  # fmt: skip
        ledger.forwards.append((run, ledger.asking, clock() - begin))
        return found

    return batch


def _greedy(ledger: Ledger, original: Callable[..., Any], side: str) -> Callable[..., Any]:
    def greedy(self: Any, prompt: Sequence[int], count: int) -> list[int]:
        begin = clock()
        found = original(self, prompt, count)
        run = Forward(
            self.ledger_side, self.dtype, self.ledger_model, "greedy", (tuple(prompt),), None, count
        )
        ledger.forwards.append((run, ledger.asking, clock() - begin))
        return found

    return greedy


_WRAP = {"__init__": _load, "forward": _forward, "batch": _batch, "greedy": _greedy}


def _digest(feed: Any) -> str:
    """Of what is fed, site by site."""
    if feed is None:
        return ""
    found = hashlib.sha256()
    for site, array in feed.items():
        found.update(repr(site).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:12]


def _digest_of_weights(backend: Any) -> str:
    """Of all parameters as float64, so that a model and its lifted twin of equal weights agree."""
    found = hashlib.sha256()
    for name, value in sorted((backend.weights() or {}).items()):
        array = value.double().numpy() if hasattr(value, "double") else _plain(value)
        found.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:12]


def _plain(value: Any) -> np.ndarray:
    from harness.backends._mlx import as_mlx, to_numpy

    return to_numpy(as_mlx(value)).astype(np.float64)
