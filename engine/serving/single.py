"""A worker that runs one request at a time, on whatever backend: what PyTorch serves with.

It has the methods of `worker.Worker`. Neither rows nor prefixes are shared.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import mlx.core as mx

from ..errors import QueueFull, ShuttingDown, one_line
from ..generate import check_prompt
from .requests import Done, Piece, Request, WorkerStatus
from .tally import Tally
from .ticket import Ticket

if TYPE_CHECKING:
    from ..backend import Running
    from ..tokenizer import Tokenizer


class SingleWorker:
    """Runs requests in their order until it is closed; at most `queue` wait."""

    def __init__(self, running: Running, tokenizer: Tokenizer, *, queue: int = 64) -> None:
        self._running, self._tokenizer, self._queue = running, tokenizer, queue
        self._waiting: deque[tuple[Request, Ticket]] = deque()
        self._changed = threading.Condition()
        self._closing = self._abandoned = False
        self._current: Ticket | None = None
        self._counts = Tally()
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
        return WorkerStatus(
            waiting=len(self._waiting),
            running=int(self._current is not None),
            rows=1,
            queue=self._queue,
            cache_bytes=0,
            row_bytes=0,
            peak_memory=self._running.peak_memory(),
            closing=self._closing,
            dead=None,
            **self._counts.figures(),  # type: ignore[arg-type]
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
                self._counts["generated_tokens"] += 1
                self._counts.made(1)
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
            return Done("error", "", prompt, 0, made, error=one_line(cause))
