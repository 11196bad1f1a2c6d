"""What passes between the protocols and the worker: a request, its pieces, its end.

Nothing here knows HTTP or arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Request:
    """One text to continue."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Any = None
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    constraint: Any = None


@dataclass(frozen=True)
class Piece:
    """One token, and the text that is certain with it."""

    text: str
    token: int
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a request: always its last event."""

    reason: str
    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    stopped_by: str | int | None = None
    error: str | None = None
