"""How fast a model runs here: prefill, decode, time to first token, memory.

Prompts are random tokens, greedily continued and never stopped, so that runs do the same work. The
first run is a warm-up and not counted: it reads weights and compiles kernels.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .backend import Running
from .errors import EngineError, InvalidPrompt
from .generate import Timing


@dataclass(frozen=True)
class Spread:
    """The middle of some runs, and the smallest and the largest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Figures:
    """Prefill and decode in tokens/s, `first` in seconds to the first token, `memory` in bytes.

    `decode` is None where too few tokens came to time them.
    """

    prompt_tokens: int
    tokens: int
    runs: int
    prefill: Spread
    decode: Spread | None
    first: Spread
    memory: int


def bench(
    running: Running,
    prompt_tokens: int,
    tokens: int,
    runs: int,
    tell: Callable[[int, Timing], Any] = lambda run, timing: None,
) -> Figures:
    """Run a model `runs` times after a warm-up, which is run 0; `tell` hears of each.

    Raises EngineError where fewer tokens come than were asked for, as with learned positions.
    """
    draw = random.Random(0)
    prompt = [draw.randrange(running.vocab) for _ in range(prompt_tokens)]
    timings = []
    for run in range(runs + 1):
        timing = Timing()
        try:
            for _ in running.generate(prompt, tokens, timing=timing):
                pass
        except InvalidPrompt as error:
            raise InvalidPrompt(f"--prompt-tokens {prompt_tokens}: {error}") from None
        if timing.tokens < tokens:
            raise EngineError(
                f"the model has no positions for more than {prompt_tokens + timing.tokens - 1} "
                f"tokens: --prompt-tokens {prompt_tokens} and --tokens {tokens} are too many"
            )
        tell(run, timing)
        timings.append(timing)
    counted = timings[1:]
    return Figures(
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        runs=runs,
        prefill=_spread([t.prompt_rate for t in counted]),
        decode=_spread([t.decode_rate for t in counted]) if tokens > 1 else None,
        first=_spread([t.prompt_seconds for t in counted]),
        memory=running.peak_memory(),
    )


def _spread(values: list[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known))
