"""What is counted about requests, for Prometheus and for the page.

The worker's own figures are read from its status when somebody asks; only what the worker cannot
know, such as how long a client waited, is counted here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .answers import Events

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Watch:
    """Metrics of one server, in a registry of their own."""

    def __init__(self, worker: Any) -> None:
        self.registry = CollectorRegistry()
        self.answers = Counter(
            "engine_http_responses", "Answers by route and status.", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.first = Histogram(
            "engine_time_to_first_token_seconds", "From a request to its first token.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Status(worker))  # type: ignore[arg-type]

    async def observed(self, events: Events) -> Events:
        """The same events; the time to the first of each ticket is noted."""
        begin, seen = time.perf_counter(), set()
        async with aclosing(events) as source:
            async for index, event in source:
                if index not in seen:
                    seen.add(index)
                    self.first.observe(time.perf_counter() - begin)
                yield index, event


class _Status:
    """The worker's status as metrics, read when they are."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        status = self._worker.status
        for name, (field, help) in _GAUGES.items():
            yield GaugeMetricFamily(name, help, getattr(status, field))
        for name, (field, help) in _COUNTERS.items():
            yield CounterMetricFamily(name, help, getattr(status, field))
        yield GaugeMetricFamily(
            "engine_resident_memory_bytes", "Memory of this process.", resident_bytes()
        )


# Metric: the field of the worker's status, and what it is.
_GAUGES = {
    "engine_requests_waiting": ("waiting", "Requests in the queue."),
    "engine_requests_running": ("running", "Requests in the batch."),
    "engine_rows": ("rows", "Requests that can run at once."),
    "engine_queue_size": ("queue", "Requests that may wait."),
    "engine_tokens_per_second": ("tokens_per_second", "Tokens made in the last seconds, a second."),
    "engine_prefix_cache_bytes": ("cache_bytes", "What the prefix cache holds."),
    "engine_row_cache_bytes": ("row_bytes", "What the caches of running requests hold."),
    "engine_peak_memory_bytes": ("peak_memory", "What MLX held at most."),
}
_COUNTERS = {
    "engine_requests": ("requests", "Requests taken."),
    "engine_prompt_tokens": ("prompt_tokens", "Tokens of prompts, cached ones included."),
    "engine_cached_tokens": ("cached_tokens", "Tokens of prompts that were cached."),
    "engine_generated_tokens": ("generated_tokens", "Tokens made."),
    "engine_prefix_cache_hits": ("cache_hits", "Prompts of which a beginning was cached."),
    "engine_prefix_cache_misses": ("cache_misses", "Prompts of which nothing was cached."),
    "engine_cancelled": ("cancelled", "Requests whose client left."),
    "engine_failed": ("failed", "Requests that ended with an error."),
}


def resident_bytes() -> int:
    """The resident memory of this process."""
    import psutil

    return psutil.Process().memory_info().rss
