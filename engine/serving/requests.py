"""What passes between the protocols and the worker: a request, its pieces, its end.

Nothing here knows HTTP or arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..sampling.wishes import Sampling

if TYPE_CHECKING:
    from ..answer import Answer
    from ..tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """One text to continue.

    `stop_tokens` end it besides the tokenizer's own, which `ignore_eos` leaves out. `logprobs` k
    asks for the log-probability of every token taken, and of the k best. `constraint` is a compiled
    one, and serves one request. `skip_special`: the text has no special tokens.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    constraint: Any = None
    skip_special: bool = True

    def answer(self, tokenizer: Tokenizer) -> Answer:
        """Its text, to be told the tokens."""
        from ..answer import Answer

        ends = self.stop_tokens | (frozenset() if self.ignore_eos else tokenizer.eos_ids)
        return Answer(tokenizer, self.stop, ends=ends, skip_special=self.skip_special)


@dataclass(frozen=True)
class Piece:
    """One token, and the text that is certain with it."""

    text: str
    token: int
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a request: always its last event.

    `reason` is "stop", "length", "cancelled" or "error"; `text` what was held back. The token that
    stopped it had a piece of its own, without text, and is counted.
    """

    reason: str
    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    stopped_by: str | int | None = None
    error: str | None = None


@dataclass(frozen=True)
class WorkerStatus:
    """How a worker is. Figures without a unit are counted from its start.

    `dead` says why it takes nothing any more; None while it lives.
    """

    waiting: int
    running: int
    rows: int  # requests that can run at once
    queue: int  # requests that may wait
    tokens_per_second: float  # over the last seconds
    cache_bytes: int  # of the prefix cache
    row_bytes: int  # of the caches of requests that run
    peak_memory: int  # bytes
    requests: int
    prompt_tokens: int  # cached ones included
    cached_tokens: int
    generated_tokens: int
    cache_hits: int  # prompts of which a beginning was cached
    cache_misses: int
    cancelled: int
    failed: int
    closing: bool
    dead: str | None
