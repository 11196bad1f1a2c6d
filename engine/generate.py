"""Generation, token by token: prefill in chunks, then decode one step ahead.

Nothing here knows text, which `answer.py` makes of tokens, or how a token is chosen of logits.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from .cache import Cache, make_cache
from .decoder import Decoder
from .errors import InvalidPrompt
from .sampling import Sampler, Sampling, best
from .sampling import logprobs as log_probabilities
from .spec import DecoderSpec
from .weights.quantised import Packing

if TYPE_CHECKING:
    from .constraint import Constraint

PREFILL_CHUNK = 2048  # tokens fed at a time, so that memory does not grow with the prompt squared


@dataclass
class Timing:
    """What a run of `generate` took. Seconds; tokens/s are None where nothing was measured."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    first: float = 0.0
    last: float = 0.0

    @property
    def prompt_rate(self) -> float | None:
        """Prompt tokens per second, the first new token included in the time."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else None

    @property
    def decode_rate(self) -> float | None:
        """(n-1) / (t_last - t_first): tokens per second once the first one is there."""
        if self.tokens < 2 or self.last <= self.first:
            return None
        return (self.tokens - 1) / (self.last - self.first)


def check_prompt(prompt: Sequence[int], vocab: int, room: int | None = None) -> None:
    """Raise InvalidPrompt for a prompt that is empty, out of range, or longer than `room`."""
    if len(prompt) == 0:
        raise InvalidPrompt("the prompt has no tokens: give at least one, or a model that adds BOS")
    worst = max(prompt, key=lambda i: (i >= vocab or i < 0, i))
    if not 0 <= worst < vocab:
        raise InvalidPrompt(f"token id {worst} is outside the vocabulary of {vocab} rows")
    if room is not None and len(prompt) > room:
        raise InvalidPrompt(f"the prompt has {len(prompt)} tokens: the model has {room} positions")


def prefill(
    decoder: Decoder, prompt: Sequence[int], cache: list[Cache], chunk: int = PREFILL_CHUNK
) -> mx.array:
    """Feed a prompt; return the logits (1, V) after its last token, being computed.

    That one is fed alone: of the others only keys and values are needed, so that the last block
    and the head compute nothing for them.
    """
    length = len(prompt)
    for start in range(0, length - 1, chunk):
        mx.eval([layer.arrays for layer in cache])  # one chunk at a time is in memory
        part = prompt[start : min(start + chunk, length - 1)]
        decoder(mx.array([part]), cache, length=length)
        for layer in cache:
            layer.compact()  # a window has dropped most of a chunk
        mx.async_eval([layer.arrays for layer in cache])
    return decoder(mx.array([prompt[-1:]]), cache, length=length)[:, -1]


@dataclass(frozen=True)
class Step:
    """A token, and where they were asked for its log-probability and the likeliest with theirs.

    Both are the model's own, before any wish or constraint.
    """

    token: int
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()


class Feed(Protocol):
    """A model for one sequence: logits (V,) after the prompt, then after each token fed to it.

    `room` is how many positions there are, None for no end. `ahead` says that `next` takes a token
    that is not computed yet and returns at once.
    """

    vocab: int
    room: int | None
    ahead: bool

    def begin(self, prompt: Sequence[int]) -> mx.array: ...

    def next(self, token: mx.array) -> mx.array: ...


class DecoderFeed:
    """A decoder with its caches, packed where a `packing` of `kv.packing_of` is given.

    Where a sequence outgrows the short factors of LongRoPE it is fed once more, because all its
    keys are other ones then.
    """

    ahead = True

    def __init__(self, decoder: Decoder, packing: Packing | None = None) -> None:
        self.vocab, self.room = decoder.spec.vocab, decoder.spec.learned_positions
        self._decoder, self._packing, self._edges = decoder, packing, edges(decoder.spec)
        self._length = 0  # of what was fed
        self._known: list[mx.array] = []  # the same, where it may have to be fed again

    def begin(self, prompt: Sequence[int]) -> mx.array:
        self._length = len(prompt)
        self._cache = make_cache(self._decoder.spec, packing=self._packing)
        self._known = list(map(mx.array, prompt)) if self._edges else []
        return prefill(self._decoder, prompt, self._cache)[0]

    def next(self, token: mx.array) -> mx.array:
        if self._edges:
            self._known.append(token)
        if self._length in self._edges:
            return self.begin([_id(each) for each in self._known])
        self._length += 1
        return self._decoder(token.reshape(1, 1), self._cache)[0, -1]


def generate(
    decoder: Decoder,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    stop: Collection[int] = (),
    timing: Timing | None = None,
    sampling: Sampling | None = None,
    constraint: Constraint | None = None,
) -> Iterator[int]:
    """Yield the continuation of `prompt`, greedy unless `sampling` is given: see `steps`."""
    for step in steps(
        DecoderFeed(decoder),
        prompt,
        max_tokens,
        stop=stop,
        timing=timing,
        sampling=sampling,
        constraint=constraint,
    ):
        yield step.token


def steps(
    feed: Feed,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    stop: Collection[int] = (),
    timing: Timing | None = None,
    sampling: Sampling | None = None,
    constraint: Constraint | None = None,
    logprobs: int | None = None,
) -> Iterator[Step]:
    """Yield the continuation of `prompt`, up to and including a token of `stop`.

    Greedy unless `sampling` is given. `logprobs` asks for log-probabilities, and for so many of the
    likeliest tokens. Ends early where positions run out, and where a constraint lets only an end
    token follow. Raises InvalidPrompt and InvalidRequest.
    """
    check_prompt(prompt, feed.vocab, feed.room)
    if feed.room is not None:
        max_tokens = min(max_tokens, feed.room - len(prompt) + 1)
    timing = timing if timing is not None else Timing()
    sampling = sampling or Sampling()
    sampler = Sampler(sampling, prompt, feed.vocab)
    # Whether the next token can be chosen before this one is known to anybody but the device.
    blind = feed.ahead and not sampling.penalised and constraint is None

    def choose(logits: mx.array) -> tuple[mx.array, ...]:
        allowed = None if constraint is None else constraint.allowed()
        token = sampler(logits, allowed)
        if logprobs is None:
            return (token,)
        values = log_probabilities(logits)
        return token, values[token], *best(values, logprobs)

    begin = time.perf_counter()
    chosen = choose(feed.begin(prompt))
    mx.async_eval(*chosen)
    for n in range(max_tokens):
        more = n + 1 < max_tokens
        # The next step is queued before this token is read back.
        logits = feed.next(chosen[0]) if more and feed.ahead else None
        following = choose(logits) if logits is not None and blind else None
        if logits is not None:
            mx.async_eval(*(following or (logits,)))
        step = _step(chosen)
        timing.last = time.perf_counter()
        timing.tokens += 1
        if n == 0:
            timing.first = timing.last
            timing.prompt_tokens, timing.prompt_seconds = len(prompt), timing.first - begin
        yield step
        if step.token in stop or not more:
            return
        sampler.took(step.token)
        if constraint is not None:
            constraint.took(step.token)
            if constraint.done:
                return
        chosen = following or choose(feed.next(chosen[0]) if logits is None else logits)


def _step(chosen: tuple[mx.array, ...]) -> Step:
    token, *rest = chosen
    if not rest:
        return Step(_id(token))
    logprob, ids, values = rest
    likeliest = zip(ids.tolist(), values.tolist(), strict=True)  # type: ignore[arg-type]
    return Step(_id(token), float(logprob.item()), tuple(likeliest))  # type: ignore[arg-type]


def edges(spec: DecoderSpec) -> set[int]:
    """The lengths that are the last of LongRoPE's short factors."""
    return {rope.original_length or 0 for rope in spec.stretched if rope.type == "longrope"}


def _id(token: mx.array) -> int:
    return int(token.item())  # type: ignore[arg-type]
