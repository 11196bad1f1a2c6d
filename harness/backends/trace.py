"""A trace file as a side: `trace:FILE`, written by any program. See docs/TRACE_FORMAT.md."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.files import ModelFiles

from ..errors import BadOption, BadTrace
from ..seeded import block_input
from ..traces import Trace
from ..types import ISOLATED, LOGITS, PROPAGATED, Probe, Site, TokenFacts
from . import Observe, Request
from ._streamed import before

RECORDED = "a trace holds what was computed once, elsewhere"
LIMITS = ("environment", "observer", "cache", "batch", "repeat")


def load(request: Request) -> TraceBackend:
    """Read the file. Raises BadTrace where it does not fit the model or the dtype."""
    trace = _read(request)
    if trace.dtype != request.dtype:
        raise BadTrace(f"trace {trace.path} is at {trace.dtype}, and {request.dtype} is wanted")
    return TraceBackend(trace, request.files)


load_streamed = load  # a file is read part by part as well


def only_dtype(request: Request) -> str:
    return _read(request).dtype


def _read(request: Request) -> Trace:
    if not request.argument:
        raise BadOption("backend 'trace' needs a file: trace:FILE")
    return Trace(Path(request.argument))


class TraceBackend:
    """What a file says about its probes, and nothing about any other sequence."""

    def __init__(self, trace: Trace, files: ModelFiles) -> None:
        blocks = files.config.get("num_hidden_layers", files.config.get("n_layer"))
        trace.complete(blocks if isinstance(blocks, int) else None)
        self.name, self.dtype, self.device = f"trace:{trace.path}", trace.dtype, trace.device
        self.probes, self.file = trace.probes, trace.path
        self.blocks = trace.blocks
        self._trace = trace
        self.limits: Mapping[str, str] = dict.fromkeys(LIMITS, RECORDED)
        if not trace.has(PROPAGATED, "block"):
            self.limits = {**self.limits, "sites": "the trace holds no blocks"}
        if not any(trace.taken(probe) for probe in self.probes):
            self.limits = {**self.limits, "greedy": "the trace holds no greedy tokens"}

    def forward(
        self,
        tokens: Sequence[int],
        observe: Observe | None = None,
        *,
        feed: Mapping[Site, np.ndarray] | None = None,
        inside: int | None = None,
        chunks: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See `Backend.forward`. Isolated sites are shown where `feed` is what they were fed."""
        probe = self._probe(tokens)
        if feed is None:
            sites = dict(self._trace.sites(probe, PROPAGATED))
        else:
            sites = dict(self._trace.sites(probe, ISOLATED)) if _as_fed(probe, feed) else {}
        if observe is not None:
            for site, array in sites.items():
                observe(site, array)
        return sites.get(LOGITS, np.zeros((len(tokens), 0), np.float32))

    @contextlib.contextmanager
    def resident(self, part: Site) -> Iterator[None]:
        """See `Streamed.resident`: arrays are read when they are asked for."""
        yield

    def run(
        self,
        tokens: Sequence[int],
        part: Site,
        mode: str,
        fed: np.ndarray | None,
        observe: Observe,
    ) -> None:
        """See `Streamed.run`."""
        probe = self._probe(tokens)
        entering = None if fed is None else before(part, self.blocks)
        if mode == PROPAGATED or entering is None or _as_fed(probe, {entering: np.asarray(fed)}):
            for site, array in self._trace.sites(probe, mode, part):
                observe(site, array)

    def batch(
        self, sequences: Sequence[Sequence[int]], chunks: Sequence[int] | None = None
    ) -> None:
        return None

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        for probe in self.probes:
            if probe.prompt == len(prompt) and probe.tokens[: probe.prompt] == tuple(prompt):
                return (self._trace.taken(probe) or [])[:count]
        return []

    def weights(self) -> Mapping[str, Any] | None:
        return None

    def checkpoint(self) -> None:
        return None

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any] | None:
        return None

    def tokens(self, texts: Sequence[str]) -> TokenFacts | None:
        return None

    def locate(self, site: Site) -> str | None:
        return None

    def _probe(self, tokens: Sequence[int]) -> Probe:
        found = next((probe for probe in self.probes if probe.tokens == tuple(tokens)), None)
        if found is None:
            raise BadTrace(f"{self.name} has no probe of these {len(tokens)} tokens")
        return found


def _as_fed(probe: Probe, feed: Mapping[Site, np.ndarray]) -> bool:
    """Whether what enters every block is what the probe's exponents say."""
    if probe.scales is None:
        return False
    for site, array in feed.items():
        place, (length, width) = 0 if site.block is None else site.block + 1, array.shape
        if place >= len(probe.scales) or not np.array_equal(
            array, block_input(place, length, width, probe.scales[place])
        ):
            return False
    return bool(feed)
