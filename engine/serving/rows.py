"""The requests that are decoded together: one token each a step.

Between steps every row has been fed all it knows, and one token more is chosen and not read yet.
Where no row's next token depends on reading that one, the next step is queued before it is read, so
that the device does not wait for Python.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import mlx.core as mx

from ..cache import AnyCache, Apart, make_cache
from ..decoder import Decoder
from ..generate import edges
from ..weights.quantised import Packing
from .job import Job, Told
from .prefill import greedy, last_tokens
from .prefixes import Prefixes


class Rows:
    """`fixed` is None, or how many rows each step has, whoever is in it, each attended to alone.

    `packing` is that of the caches.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefixes: Prefixes,
        fixed: int | None = None,
        packing: Packing | None = None,
    ) -> None:
        self._decoder, self._prefixes = decoder, prefixes
        self._fixed, self._packing = fixed, packing
        self._edges = edges(decoder.spec)
        self.clear()

    def clear(self) -> None:
        """Have no rows."""
        self.jobs: list[Job] = []
        blocks = make_cache(self._decoder.spec, packing=self._packing)
        self._layers: list[AnyCache] = (
            [*blocks] if self._fixed is None else [Apart([], self._fixed) for _ in blocks]
        )
        self._tokens = mx.array([], mx.uint32)  # (B,), chosen and not read
        self._told: list[Told | None] = []

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, room included."""
        return sum(layer.nbytes for layer in self._layers)

    def join(self, jobs: Sequence[Job]) -> None:
        """Take in jobs that are fed and have their next token chosen."""
        if not jobs:
            return
        alone = zip(*(job.cache for job in jobs), strict=True)  # by block, then by job
        self._layers = [layer.joined(new) for layer, new in zip(self._layers, alone, strict=True)]
        chosen = [job.next for job in jobs if job.next is not None]
        self._tokens = mx.concatenate([self._tokens, *(token[None] for token, _ in chosen)])
        self._told += [told for _, told in chosen]
        self.jobs += jobs
        for job in jobs:
            job.cache, job.next = [], None

    def step(self) -> list[Job]:
        """Give every row its token and choose the next; return the jobs that left.

        They are done, or have to be fed once more as a whole.
        """
        tokens, told = self._tokens, self._told
        ahead = all(self._goes_on(job) for job in self.jobs)
        if ahead:
            self._feed()
        values: Any = tokens.tolist()
        for job, token, what in zip(self.jobs, values, told, strict=True):
            job.take(token, what)
        left = [job for job in self.jobs if job.done or (not ahead and self._outgrown(job, 1))]
        self.leave(left)
        if self.jobs and not ahead:
            self._feed()
        return left

    def leave(self, leaving: Collection[Job]) -> None:
        """Have the rows of some jobs no more; what was computed is kept for others."""
        if not leaving:
            return
        if self._fixed is None:  # decoding rounds otherwise than prefill: no two runs alike
            for row, job in enumerate(self.jobs):
                if job in leaving:
                    self._remember(row, job)
        stay = [row for row, job in enumerate(self.jobs) if job not in leaving]
        if not stay:
            return self.clear()
        self._layers = [layer.take(stay) for layer in self._layers]
        self._tokens = self._tokens[mx.array(stay)]
        self._told = [self._told[row] for row in stay]
        self.jobs = [self.jobs[row] for row in stay]

    def _goes_on(self, job: Job) -> bool:
        """Whether a job can be fed its next token before that is read."""
        return job.independent and not job.last_is_next and not self._outgrown(job, 0)

    def _outgrown(self, job: Job, unfed: int) -> bool:
        """Whether all keys are others once the next token is fed: LongRoPE's long factors."""
        return len(job.known) - unfed in self._edges

    def _feed(self) -> None:
        """Feed the tokens that were chosen, and choose the next."""
        count, tokens = len(self.jobs), self._tokens
        if self._fixed is not None:
            tokens = mx.pad(tokens, (0, self._fixed - count))
        logits = self._decoder(tokens[:, None], self._layers)[:count, -1]  # (B, V)
        best = greedy(logits)
        told: list[Told | None] = [None] * count
        if not all(job.plain for job in self.jobs):
            chosen = [job.choose(logits[row], best[row]) for row, job in enumerate(self.jobs)]
            best, told = mx.stack([token for token, _ in chosen]), [told for _, told in chosen]
        self._tokens, self._told = best, told
        mx.async_eval(self._tokens, self._told)

    def _remember(self, row: int, job: Job) -> None:
        lengths = self._layers[0].lengths(0)
        fed = lengths if isinstance(lengths, int) else lengths[row]
        if self._prefixes.same_era(job.prefilled, fed):
            self._prefixes.put(job.known[:fed], fed, lambda n: last_tokens(self._layers, n, row))
