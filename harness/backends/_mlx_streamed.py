"""An MLX model that is never in memory as a whole.

Its arrays are lazy: they are read when something that depends on them is evaluated. So a part is
run by building the graph of all, putting what enters the part into it, and evaluating what comes
out; then the whole lazy model is thrown away, with what was read into it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from engine.files import ModelFiles
from engine.model import DTYPES

from ..types import LOGITS, Site, TokenFacts
from . import Observe, rows
from ._mlx import Gathered, to_numpy
from ._streamed import EMBEDDING, Shards, before, row_slices, within

WHOLE = "the model is streamed: its weights are never in memory together"
LIMITS = ("observer", "greedy", "cache", "batch", "repeat")


class StreamedMLX:
    """A backend of MLX modules, part by part; `make` builds it with lazy arrays."""

    sums = "mlx"

    def __init__(self, files: ModelFiles, make: Callable[[], Any]) -> None:
        self._make, self._shards = make, Shards(files)
        side = make()
        self.name, self.dtype, self.device = side.name, side.dtype, side.device
        self.limits: Mapping[str, str] = dict.fromkeys((*LIMITS, "inside"), WHOLE)
        self.blocks: int = side.blocks
        self._side: Any = None
        self._tables = {
            part: self._shards.table(side.path_of(part), side.module_at(part).weight.shape)
            for part in (EMBEDDING, LOGITS)
        }

    @contextlib.contextmanager
    def resident(self, part: Site) -> Iterator[None]:
        """See `Streamed.resident`."""
        limit = mx.set_cache_limit(0)
        self._side = self._make()
        try:
            yield
        finally:
            self._side = None
            mx.clear_cache()
            mx.set_cache_limit(limit)

    def run(
        self,
        tokens: Sequence[int],
        part: Site,
        mode: str,
        fed: np.ndarray | None,
        observe: Observe,
    ) -> None:
        """See `Streamed.run`."""
        table = self._tables.get(part)
        module = self._side.module_at(part) if table else None
        if part == LOGITS:
            pieces = []
            for start, stop in row_slices(self._shards.shapes[table][0]) if table else [(0, 0)]:
                if table:
                    self._hold(module, self._shards.rows(table, start, stop), start, stop)
                seen, logits = self._graph(tokens, part, fed)
                mx.eval(logits, *seen.values())
                pieces.append(to_numpy(logits)[0])
                for site, value in seen.items() if not start else ():
                    observe(site, rows(to_numpy(value), len(tokens)))
            observe(LOGITS, np.concatenate(pieces, axis=1))
            return
        if table:
            used = sorted(set(tokens))
            kept = [self._shards.rows(table, token, token + 1) for token in used]
            self._hold(module, np.concatenate(kept), None, None)
            tokens = [used.index(token) for token in tokens]
        seen, _ = self._graph(tokens, part, fed)
        mx.eval(*seen.values())
        for site, value in seen.items():
            observe(site, rows(to_numpy(value), len(tokens)))

    def _graph(
        self, tokens: Sequence[int], part: Site, fed: np.ndarray | None
    ) -> tuple[dict[Site, mx.array], mx.array]:
        """The sites of a part and the logits, nothing evaluated."""
        feed = {} if fed is None else {before(part, self.blocks): fed}
        gathered = Gathered(len(tokens), feed)
        logits = self._side.graph(mx.array([list(tokens)]), gathered, None)
        return {s: value for s, value in gathered.seen.items() if within(s, part)}, logits

    def _hold(self, module: Any, table: np.ndarray, start: int | None, stop: int | None) -> None:
        """Rows of a table as the weight of its module, and of its bias the same."""
        if table.dtype.name == "bfloat16":
            weight = mx.array(table.view(np.uint16)).view(mx.bfloat16)
        else:
            weight = mx.array(table)
        if "bias" in module and start is not None:
            module.bias = self._make().module_at(LOGITS).bias[start:stop]
        module.weight = weight.astype(DTYPES[self.dtype])

    def weights(self) -> Mapping[str, Any]:
        return self._make().weights()

    def checkpoint(self) -> None:
        return None

    def expected_weights(self, reference: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._make().expected_weights(reference)

    def tokens(self, texts: Sequence[str]) -> TokenFacts | None:
        return self._make().tokens(texts)

    def locate(self, site: Site) -> str | None:
        return self._make().locate(site)
