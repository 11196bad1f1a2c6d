"""What a worker counts from its start, and how many tokens it made lately."""

from __future__ import annotations

import time
from collections import Counter, deque

_RECENT = 5.0  # seconds that tokens per second are taken over
# Fields of WorkerStatus, and what they are counted as.
_FIELDS = {
    "requests": "requests",
    "prompt_tokens": "prompt_tokens",
    "cached_tokens": "cached_tokens",
    "generated_tokens": "generated_tokens",
    "cache_hits": "cache_hits",
    "cache_misses": "cache_misses",
    "cancelled": "cancelled",
    "failed": "error",
}


class Tally(Counter[str]):
    """Counts by name. Written by the worker's thread, read by any."""

    def __init__(self) -> None:
        super().__init__()
        self._recent: deque[tuple[float, int]] = deque()  # when, tokens made

    def made(self, tokens: int) -> None:
        """Note how many tokens were made since the last time."""
        now = time.monotonic()
        self._recent.append((now, tokens))
        while self._recent[0][0] < now - _RECENT:
            self._recent.popleft()

    def figures(self) -> dict[str, float]:
        """Those of a WorkerStatus that are counted here."""
        since = time.monotonic() - _RECENT
        made = sum(tokens for when, tokens in list(self._recent) if when > since)
        counts = {field: self[name] for field, name in _FIELDS.items()}
        return {"tokens_per_second": made / _RECENT, **counts}
