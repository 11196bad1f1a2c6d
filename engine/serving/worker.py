"""The thread that owns MLX: requests come in, tokens and text go out.

waiting -> prefill, a chunk between two steps -> rows, a token each a step -> events. All arrays are
made and used on this one thread, since MLX's streams are a thread's own; what leaves are numbers
and text. Nothing here knows HTTP.

    worker = Worker(engine.load("golden/models/tiny-llama"))
    for event in worker.submit(Request(prompt, max_tokens=20)).events(): ...
"""

from __future__ import annotations

import atexit
import secrets
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import mlx.core as mx

from ..errors import InvalidRequest, QueueFull, RankLost, ShuttingDown, one_line
from ..generate import check_prompt
from ..runtime import device_name, peak_memory
from ..weights.quantised import Packing
from .job import Job
from .lockstep import IDLE, Lockstep, News, seeded
from .prefill import PACES, Prefill
from .prefixes import Prefixes
from .requests import Done, Piece, Request, WorkerStatus
from .rows import Rows
from .tally import Tally
from .ticket import Ticket

if TYPE_CHECKING:
    from ..model import Model

__all__ = ["Done", "Piece", "Request", "Ticket", "Worker", "WorkerStatus"]

_FAILURES = 3  # of MLX, one after the other: it will not come back
_TIDY = 256  # turns between two times that MLX gives back memory nobody uses
_LONGEST_WAIT = 600.0  # seconds; further no estimate reaches


class Worker:
    """Runs requests on one model until it is closed.

    At most `max_rows` run at once and `queue` wait. `deterministic`: a request's tokens and
    log-probabilities have the same bits whatever runs beside it; see docs/SERVER.md for the price.
    `packing` is that of keys and values, one that `kv.packing_of` gave for the model.
    `prefill_chunk` is how many tokens of prompts the rows wait for between two steps; None: what
    suits the device.
    `lockstep` is for a model over several ranks: only rank 0's takes requests.
    `max_prompt_tokens` and `max_tokens` are the most that a request may have and ask for. The model
    must have been loaded by the thread that makes the worker.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_rows: int = 8,
        queue: int = 64,
        prefix_cache_bytes: int = 1 << 30,
        prefill_chunk: int | None = None,
        deterministic: bool = False,
        packing: Packing | None = None,
        max_prompt_tokens: int | None = None,
        max_tokens: int | None = None,
        lockstep: Lockstep | None = None,
    ) -> None:
        self._spec, self._tokenizer = model.spec, model.tokenizer
        pace = PACES[device_name()]
        if prefill_chunk is not None:
            pace = replace(pace, chunk=prefill_chunk)
        self._max_rows, self._queue, self._chunk = max_rows, queue, pace.chunk
        self._max_prompt_tokens, self._max_tokens = max_prompt_tokens, max_tokens
        mx.eval(model.decoder.parameters())  # no other thread can evaluate what this one made
        step = pace.chunk if deterministic else 1
        room = prefix_cache_bytes if lockstep is None or lockstep.same_caches else 0
        self._prefixes = Prefixes(model.spec, room, step, packing)
        self._prefill = Prefill(model.decoder, self._prefixes, pace, deterministic, packing)
        fixed = max_rows if deterministic else None
        self._rows = Rows(model.decoder, self._prefixes, fixed, packing)
        self._filling: deque[Job] = deque()

        self._changed = threading.Condition()  # of what other threads change or wait for: these
        self._waiting: deque[Job] = deque()
        self._living: set[Job] = set()  # taken and not done
        self._closing = self._abandoned = False
        self._dead: str | None = None
        self._taken = 0  # requests so far

        self._lockstep = lockstep
        self._told = 0  # of them, those that the other ranks know
        self._open = 0  # of those that wait, the first so many may come in this turn
        self._gone: set[Job] = set()  # whose clients had left before this turn
        self._check = 0

        self._counts = Tally()
        self._turn_seconds = 0.0
        self._failures = self._turns = 0
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)
        self._thread.start()
        atexit.register(self.close, finish=False)

    # For other threads

    def submit(self, request: Request) -> Ticket:
        """Have a request run; its ticket gives what becomes of it.

        Raises InvalidPrompt and InvalidRequest for what cannot be, QueueFull, and ShuttingDown.
        """
        most = self._most_tokens(request)
        if self._lockstep is not None:
            request = seeded(request, secrets.randbits(32))
        ticket = Ticket(self._wake)
        with self._changed:
            if self._dead is not None:
                raise ShuttingDown(f"the worker has ended: {self._dead}")
            if self._closing:
                raise ShuttingDown("the worker is closing and takes nothing new")
            if len(self._waiting) >= self._queue:
                seconds = self._retry_after()
                raise QueueFull(
                    f"{self._queue} requests are waiting: try again in {seconds:.0f} s", seconds
                )
            self._take(request, ticket, most)
            self._changed.notify_all()
        return ticket

    def _take(self, request: Request, ticket: Ticket, most: int) -> None:
        job = Job(request, ticket, most, self._taken)
        self._taken += 1
        self._waiting.append(job)
        self._living.add(job)
        self._counts["requests"] += 1

    @property
    def status(self) -> WorkerStatus:
        """How it is now."""
        return WorkerStatus(
            waiting=len(self._waiting),
            running=len(self._rows.jobs) + len(self._filling),
            rows=self._max_rows,
            queue=self._queue,
            cache_bytes=self._prefixes.nbytes,
            row_bytes=self._rows.nbytes,
            peak_memory=peak_memory(),
            closing=self._closing,
            dead=self._dead,
            **self._counts.figures(),  # type: ignore[arg-type]
        )

    def close(self, *, finish: bool = True, seconds: float | None = None) -> None:
        """Take nothing new, finish what was taken, and end the thread.

        What is not done after `seconds`, or where `finish` is False, is cancelled.
        """
        with self._changed:
            self._closing = True
            self._abandoned |= not finish
            self._changed.notify_all()
        self._thread.join(seconds)
        self._abandoned = True
        self._thread.join()
        atexit.unregister(self.close)

    def join(self) -> None:
        """Wait until the thread has ended, whoever ends it."""
        self._thread.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(finish=exception[0] is None)

    def _most_tokens(self, request: Request) -> int:
        """How many tokens a request can get; raises for one that cannot be."""
        room, count = self._spec.learned_positions, len(request.prompt)
        check_prompt(request.prompt, self._spec.vocab, room)
        limits = {
            "the prompt has {} tokens": (count, self._max_prompt_tokens),
            "max_tokens is {}": (request.max_tokens, self._max_tokens),
            "logprobs is {}": (request.logprobs or 0, self._spec.vocab),
        }
        for words, (value, most) in limits.items():
            if most is not None and value > most:
                raise InvalidRequest(f"{words.format(value)}: at most {most} here")
        if request.max_tokens < 1 or (request.logprobs or 0) < 0:
            raise InvalidRequest(
                f"max_tokens is {request.max_tokens} and logprobs {request.logprobs}: "
                "give at least 1 token, and no or 0 and more log-probabilities"
            )
        return min(request.max_tokens, room - count + 1) if room else request.max_tokens

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _retry_after(self) -> float:
        """Seconds until a row is free, by how long turns took lately. At least one."""
        rows = list(self._rows.jobs)
        turns = min((job.max_tokens - job.made for job in rows), default=1)
        turns += sum((len(job.known) - job.at) / self._chunk for job in list(self._filling))
        return min(max(1.0, turns * self._turn_seconds), _LONGEST_WAIT)

    # The thread

    def _run(self) -> None:
        try:
            self._rows.clear()  # so that its arrays are this thread's
            while self._has_work():
                self._turn()
        except Exception as cause:
            said = self._lockstep and self._lockstep.lost(cause)
            self._die(one_line(said or cause))
        finally:
            # A thread that ends with streams of its own can take the process with it at exit.
            self._prefixes.clear()
            self._rows.clear()
            mx.clear_streams()

    def _has_work(self) -> bool:
        """Wait for something to do; False once it is closed and done."""
        if not self._living:
            mx.clear_cache()
        while True:
            over = self._follow() if self._lockstep and not self._lockstep.leads else self._lead()
            if over or self._living:
                return not over

    def _lead(self) -> bool:
        """Note what came in and who left, and tell it to the other ranks; whether it is over."""
        with self._changed:
            pause = None if self._lockstep is None else IDLE
            self._changed.wait_for(lambda: self._living or self._closing, pause)
            self._gone = {job for job in self._living if self._abandoned or job.ticket.cancelled}
            self._open, over = len(self._waiting), self._closing and not self._living
            new = [job.request for job in self._waiting if job.number >= self._told]
            self._told = self._taken
        if self._lockstep is not None:
            gone = [job.number for job in self._gone]
            self._lockstep.tell(News(new, gone, over, self._check))
        return over

    def _follow(self) -> bool:
        """Do what rank 0 tells; whether it is over."""
        assert self._lockstep is not None
        news = self._lockstep.hear(bool(self._living))
        if news.check != self._check:
            raise RankLost(
                "this rank has made other tokens than rank 0: are their machines, files and "
                "versions the same?"
            )
        with self._changed:
            for request in news.new:
                self._take(request, Ticket(lambda: None), self._most_tokens(request))
            self._gone = {job for job in self._living if job.number in news.gone}
            self._open = len(self._waiting)
        return news.over

    def _turn(self) -> None:
        """One chunk of prompts, and one step of the rows."""
        begin, made = time.monotonic(), self._counts["generated_tokens"]
        self._cancel()
        self._admit()
        self._step(self._feed())
        if self._failures >= _FAILURES:
            raise RuntimeError(f"MLX failed {_FAILURES} times without a success in between")
        self._turn_seconds += 0.1 * (time.monotonic() - begin - self._turn_seconds)
        self._counts.made(self._counts["generated_tokens"] - made)
        self._turns += 1
        if self._turns % _TIDY == 0:
            mx.clear_cache()

    def _cancel(self) -> None:
        """Free what nobody waits for."""

        def gone(jobs: Iterable[Job]) -> list[Job]:
            return [job for job in jobs if job in self._gone]

        with self._changed:
            waiting = gone(self._waiting)
            for job in waiting:
                self._waiting.remove(job)
            self._open -= len(waiting)
        filling, rows = gone(self._filling), gone(self._rows.jobs)
        for job in filling:
            self._filling.remove(job)
        self._rows.leave(rows)
        for job in (*waiting, *filling, *rows):
            job.cancel()
            self._settle(job)

    def _admit(self) -> None:
        """Let those in that have waited longest, while there are rows for them."""
        while len(self._filling) + len(self._rows.jobs) < self._max_rows:
            with self._changed:
                if not self._open:
                    return
                job = self._waiting.popleft()
                self._open -= 1
            try:
                job.begin(self._tokenizer, self._spec.vocab)
            except Exception as cause:
                job.fail(cause)
                self._settle(job)
            else:
                self._filling.append(job)

    def _feed(self) -> list[Job]:
        """Feed about one chunk; return the jobs that are ready to decode.

        Prompts take turns, so that a short one does not wait for a long one.
        """
        room, ready = self._chunk, []
        while self._filling and room > 0:
            batch = self._prefill.together(list(self._filling), room)
            jobs = batch or [self._filling[0]]
            for job in jobs:
                self._filling.remove(job)
            with self._guarded(jobs):
                feed = self._prefill.feed
                room -= self._prefill.feed_together(batch) if batch else feed(jobs[0])
            for job in jobs:
                if job.done:
                    self._settle(job)
                elif job.next is None:
                    self._filling.append(job)
                else:
                    self._count_prompt(job)
                    ready.append(job)
        return ready

    def _step(self, ready: list[Job]) -> None:
        """Let ready jobs join the rows, and have them all make a token."""
        left = jobs = [*self._rows.jobs, *ready]
        if not jobs:  # nothing to do is no success
            return
        made = sum(job.made for job in jobs)
        with self._guarded(jobs):
            self._rows.join(ready)
            left = self._rows.step()
        if left is jobs:
            self._rows.clear()
        if self._lockstep is not None:
            self._check = zlib.crc32(repr([job.known[-1] for job in jobs]).encode(), self._check)
        self._counts["generated_tokens"] += sum(job.made for job in jobs) - made
        for job in left:
            if job.done:
                self._settle(job)
            else:  # it has outgrown its keys
                job.at = 0
                self._filling.appendleft(job)

    @contextmanager
    def _guarded(self, jobs: list[Job]) -> Iterator[None]:
        """What MLX may fail at: the jobs that are in it end with an error then, and nobody else."""
        try:
            yield
        except Exception as cause:
            self._failures += 1
            for job in jobs:
                job.fail(f"the model could not be run: {cause}")
            self._prefixes.clear()
            if self._lockstep is not None:  # the other ranks may be anywhere
                raise
        else:
            self._failures = 0

    def _count_prompt(self, job: Job) -> None:
        if not job.made:
            self._counts["prompt_tokens"] += len(job.request.prompt)
            self._counts["cached_tokens"] += job.cached
            self._counts["cache_hits" if job.cached else "cache_misses"] += 1

    def _settle(self, job: Job) -> None:
        """Count how a job ended, then say so."""
        assert job.done is not None
        self._counts[job.done.reason] += 1
        self._living.discard(job)
        job.ticket.put(job.done)

    def _die(self, reason: str) -> None:
        with self._changed:
            self._dead = reason
            self._waiting.clear()
        for job in list(self._living):
            job.fail(f"the worker has ended: {reason}")
            self._settle(job)
        if self._lockstep is not None:
            self._lockstep.ended()
