"""Greedy generation, token by token: prefill in chunks, then decode one step ahead.

Nothing here knows text; `cli.py` joins tokens and tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from .cache import Cache, make_cache
from .decoder import Decoder
from .errors import InvalidPrompt
from .spec import DecoderSpec

PREFILL_CHUNK = 512  # tokens fed at a time, so that memory does not grow with the prompt squared


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
    """Feed a prompt; return the logits (1, V) after its last token."""
    logits = None
    for start in range(0, len(prompt), chunk):
        part = mx.array([prompt[start : start + chunk]])
        logits = decoder(part, cache, length=len(prompt), last=True)
        mx.eval(logits)
    assert logits is not None
    return logits[:, -1]


def generate(
    decoder: Decoder,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    stop: Collection[int] = (),
    timing: Timing | None = None,
) -> Iterator[int]:
    """Yield the greedy continuation of `prompt`, up to and including a token of `stop`.

    Ends early where learned positions run out. Where a sequence outgrows the short factors of
    LongRoPE it is fed once more, for all its keys are other ones then. Raises InvalidPrompt.
    """
    room = decoder.spec.learned_positions
    check_prompt(prompt, decoder.spec.vocab, room)
    if room is not None:
        max_tokens = min(max_tokens, room - len(prompt) + 1)
    timing = timing if timing is not None else Timing()
    begin = time.perf_counter()
    cache = make_cache(decoder.spec)
    token = _best(prefill(decoder, prompt, cache))
    ends, found = edges(decoder.spec), []
    for n in range(max_tokens):
        # The next step is queued before this token is read back.
        ahead = None
        if n + 1 < max_tokens and len(prompt) + n in ends:
            cache, known = make_cache(decoder.spec), [*prompt, *found, _id(token)]
            ahead = _best(prefill(decoder, known, cache))
        elif n + 1 < max_tokens:
            ahead = _best(decoder(token[:, None], cache)[:, -1])
            mx.async_eval(ahead)
        value = _id(token)
        timing.last = time.perf_counter()
        timing.tokens += 1
        if n == 0:
            timing.first = timing.last
            timing.prompt_tokens, timing.prompt_seconds = len(prompt), timing.first - begin
        found.append(value)
        yield value
        if value in stop or ahead is None:
            return
        token = ahead


def edges(spec: DecoderSpec) -> set[int]:
    """The lengths that are the last of LongRoPE's short factors."""
    ropes = [block.attention.rope for block in spec.blocks]
    return {r.original_length or 0 for r in ropes if r is not None and r.type == "longrope"}


def _id(token: mx.array) -> int:
    return int(token.item())  # type: ignore[arg-type]


def _best(logits: mx.array) -> mx.array:
    """(B, V) -> (B,), in float32: ties go to the lowest id."""
    return mx.argmax(logits.astype(mx.float32), axis=-1)
