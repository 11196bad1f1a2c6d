"""One request on its way: what it knows, how its next token is chosen, how its text grows.

Nothing here knows other requests or how rows are batched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mlx.core as mx

from ..cache import Cache
from ..sampling import Sampler, best, logprobs
from .requests import Done, Piece, Request
from .ticket import Ticket

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

# The log-probability of a token, ids of the best and theirs.
Told = tuple[mx.array, mx.array, mx.array]


@dataclass(eq=False)
class Job:
    """A request's state. `known` are its prompt and what was made; the first `at` are in `cache`.

    `done` is set once it has ended; whoever removes it from where it stands gives it to the ticket.
    """

    request: Request
    ticket: Ticket
    max_tokens: int
    number: int = 0  # of the requests that came before it
    known: list[int] = field(init=False)
    at: int = 0
    cache: list[Cache] = field(default_factory=list)  # while it is alone
    next: tuple[mx.array, Told | None] | None = None  # chosen behind the prompt, not read yet
    cached: int = 0  # tokens of the prompt that were not computed
    prefilled: int = 0  # how long the sequence was when it was last fed as a whole
    made: int = 0
    done: Done | None = None

    def __post_init__(self) -> None:
        self.known = list(self.request.prompt)

    def begin(self, tokenizer: Tokenizer, vocab: int) -> None:
        """Make what belongs to the thread that computes. Raises InvalidRequest."""
        request = self.request
        self._answer = request.answer(tokenizer)
        self._greedy = request.sampling.plain_greedy and request.constraint is None
        self._sampler = None if self._greedy else Sampler(request.sampling, request.prompt, vocab)

    @property
    def plain(self) -> bool:
        """Whether all that is asked of logits is where they are highest."""
        return self._greedy and self.request.logprobs is None

    @property
    def independent(self) -> bool:
        """Whether the next token can be chosen before this one is read."""
        return self.request.constraint is None and not self.request.sampling.penalised

    @property
    def last_is_next(self) -> bool:
        """Whether the token to come is the last, whatever it is."""
        return self.made + 1 >= self.max_tokens

    def choose(self, logits: mx.array, greedy: mx.array) -> tuple[mx.array, Told | None]:
        """Logits (V,) and their argmax () -> the token () and what is told of it, lazily.

        A request that cannot go on ends here with an error; its token means nothing then.
        """
        token = greedy
        try:
            if self._sampler is not None:
                constraint = self.request.constraint
                allowed = None if constraint is None else constraint.allowed()
                token = self._sampler(logits, allowed)
        except Exception as cause:
            self.fail(cause)
        if self.request.logprobs is None:
            return token, None
        logs = logprobs(logits)
        return token, (logs[token], *best(logs, self.request.logprobs))

    def take(self, token: int, told: Told | None) -> None:
        """Add a token: tell the ticket, and end where this was the last one."""
        if self.done is not None:
            return
        self.known.append(token)
        self.made += 1
        try:
            self._take(token, told)
        except Exception as cause:
            self.fail(cause)

    def _take(self, token: int, told: Told | None) -> None:
        self.ticket.put(Piece(self._answer.push(token), token, *_read(told)))
        if self._answer.stopped_by is not None:
            return self.end("stop")
        if self._sampler is not None:
            self._sampler.took(token)
        if (constraint := self.request.constraint) is not None:
            constraint.took(token)
            if constraint.done:
                return self.end("stop")
        if self.made >= self.max_tokens:
            self.end("length")

    def end(self, reason: str) -> None:
        """Be done, with all text that was held back; a stop string may be complete with it."""
        text, stopped_by = self._answer.finish(), self._answer.stopped_by
        self._finish(reason if stopped_by is None else "stop", text, stopped_by)

    def cancel(self) -> None:
        """Be done for nobody."""
        if self.done is None:
            self._finish("cancelled")

    def fail(self, cause: BaseException | str) -> None:
        """Be done with an error, in one line."""
        if self.done is None:
            words = str(cause).strip() or type(cause).__name__
            self._finish("error", error=" ".join(words.split()))

    def _finish(
        self, reason: str, text: str = "", stopped_by: str | int | None = None, error=None
    ) -> None:
        prompt = len(self.request.prompt)
        self.done = Done(reason, text, prompt, self.cached, self.made, stopped_by, error)
        self.cache, self.next = [], None


def _read(told: Told | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """What a piece says of a token's log-probability."""
    if told is None:
        return None, ()
    logprob, ids, values = (array.tolist() for array in told)
    return logprob, tuple(zip(ids, values, strict=True))  # type: ignore[arg-type]
