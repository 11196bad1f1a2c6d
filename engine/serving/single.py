"""A worker that runs one request at a time, on whatever backend: what PyTorch serves with.

It has the methods of `worker.Worker`. Neither rows nor prefixes are shared.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

import mlx.core as mx

from ..errors import QueueFull, ShuttingDown
from ..generate import check_prompt
from .requests import Done, Piece, Request, WorkerStatus
from .ticket import Ticket

if TYPE_CHECKING:
    from ..backend import Running
    from ..tokenizer import Tokenizer

_RECENT = 5.0  # seconds that tokens per second are taken over


class SingleWorker:
    """Runs requests in their order until it is closed; at most `queue` wait."""

    def __init__(self, running: Running, tokenizer: Tokenizer, *, queue: int = 64) -> None:
        self._running, self._tokenizer, self._queue = running, tokenizer, queue
        self._waiting: deque[tuple[Request, Ticket]] = deque()
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self._current: Ticket | None = None
        self._counts: Counter[str] = Counter()
        self._made: deque[float] = deque()  # when tokens were
        self._seconds = 1.0  # a request took, lately
        self._thread = threading.Thread(target=self._run, name="single", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Ticket:
        """As `Worker.submit`."""
        check_prompt(request.prompt, self._running.vocab)
        ticket = Ticket(lambda: None)
        with self._changed:
            if self._closing:
                raise ShuttingDown("the worker is closing and takes nothing new")
            if len(self._waiting) >= self._queue:
                seconds = max(1.0, self._seconds)
                raise QueueFull(
                    f"{self._queue} requests are waiting: try again in {seconds:.0f} s", seconds
                )
            self._waiting.append((request, ticket))
            self._counts["requests"] += 1
            self._changed.notify()
        return ticket

    @property
    def status(self) -> WorkerStatus:
        """As `Worker.status`."""
        now, counts = time.monotonic(), self._counts
        return WorkerStatus(
            waiting=len(self._waiting),
            running=int(self._current is not None),
            rows=1,
            queue=self._queue,
            tokens_per_second=sum(when > now - _RECENT for when in list(self._made)) / _RECENT,
            cache_bytes=0,
            row_bytes=0,
            peak_memory=self._running.peak_memory(),
            requests=counts["requests"],
            prompt_tokens=counts["prompt_tokens"],
            cached_tokens=0,
            generated_tokens=counts["generated_tokens"],
            cache_hits=0,
            cache_misses=counts["cache_misses"],
            cancelled=counts["cancelled"],
            failed=counts["error"],
            closing=self._closing,
            dead=None,
        )

    def close(self, *, finish: bool = True, seconds: float | None = None) -> None:
        """As `Worker.close`."""
        with self._changed:
            self._closing = True
            self._abandoned |= not finish
            self._changed.notify()
        self._thread.join(seconds)
        self._abandoned = True
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    break
                request, self._current = self._waiting.popleft()
            begin = time.monotonic()
            done = self._answered(request, self._current)
            self._seconds += 0.2 * (time.monotonic() - begin - self._seconds)
            self._counts[done.reason] += 1
            self._current.put(done)
            self._current = None
        mx.clear_streams()  # a thread that ends with streams of its own can take the process along

    def _answered(self, request: Request, ticket: Ticket) -> Done:
        """Tell the ticket the pieces of an answer; how it ended."""
        prompt, made = len(request.prompt), 0
        if self._abandoned or ticket.cancelled:
            return Done("cancelled", "", prompt, 0, 0)
        self._counts["prompt_tokens"] += prompt
        self._counts["cache_misses"] += 1
        answer, reason = request.answer(self._tokenizer), "length"
        try:
            for step in self._running.steps(
                request.prompt,
                request.max_tokens,
                stop=answer.ends,
                sampling=request.sampling,
                constraint=request.constraint,
                logprobs=request.logprobs,
            ):
                made += 1
                self._count()
                ticket.put(Piece(answer.push(step.token), step.token, step.logprob, step.best))
                if self._abandoned or ticket.cancelled:
                    return Done("cancelled", "", prompt, 0, made)
                if answer.stopped_by is not None:
                    break
            text, by = answer.finish(), answer.stopped_by
            if by is not None or (request.constraint is not None and request.constraint.done):
                reason = "stop"
            return Done(reason, text, prompt, 0, made, by)
        except Exception as cause:
            line = " ".join(str(cause).split()) or type(cause).__name__
            return Done("error", "", prompt, 0, made, error=line)

    def _count(self) -> None:
        now = time.monotonic()
        self._counts["generated_tokens"] += 1
        self._made.append(now)
        while self._made[0] < now - _RECENT:
            self._made.popleft()
