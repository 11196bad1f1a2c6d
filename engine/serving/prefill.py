"""Feeding prompts, a chunk at a time, less what is known of them already.

Chunks end at multiples of their size, counted from the first token, wherever a known prefix ends.
Short prompts that have nothing in common are fed as one batch. Nothing here knows rows that decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..cache import AnyCache, make_cache
from ..decoder import Decoder
from ..weights.quantised import Packing
from .job import Job
from .prefixes import Prefixes, Segment


@dataclass(frozen=True)
class Pace:
    """How much is fed at once: `chunk` tokens, for which the rows that decode have to wait.

    Of two prompts that are fed as one batch the shorter has at least `alike` of the other's length.
    """

    chunk: int
    alike: float


# What a pass costs beside its tokens is much on CUDA and little on a CPU. Metal was not measured.
PACES = {"cuda": Pace(2048, 0.4), "metal": Pace(512, 0.75), "cpu": Pace(512, 0.75)}
SHARED = 16  # tokens that prompts may begin with in common and be fed at once all the same


class Prefill:
    """`whole_chunks`: what ends otherwise than with a chunk is not kept for others.

    `packing` is that of the caches.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefixes: Prefixes,
        pace: Pace,
        whole_chunks: bool,
        packing: Packing | None = None,
    ) -> None:
        self._decoder, self._prefixes, self._packing = decoder, prefixes, packing
        self._pace, self._whole_chunks = pace, whole_chunks

    def feed(self, job: Job) -> int:
        """Feed the next chunk of what a job knows; with the last one its next token is chosen.

        Returns how many tokens were computed. What others have computed since the last chunk is
        taken over.
        """
        total = len(job.known)
        if not job.at:
            job.cache = make_cache(self._decoder.spec, packing=self._packing)
            job.prefilled = total
        if (known := self._prefixes.find(job.known, job.at)) is not None:
            job.cache, before, job.at = known, job.at, known[0].offset
            if not job.made:  # else it is fed again, and has been counted
                job.cached += job.at - before

        end = min(total, job.at - job.at % self._pace.chunk + self._pace.chunk)
        tokens = mx.array([job.known[job.at : end]])
        logits = self._decoder(tokens, job.cache, length=total, last=True)[0, -1]
        # Of a chunk that others follow, the last block and the head are nobody's wish.
        mx.eval(logits if end == total else [layer.arrays for layer in job.cache])
        count, job.at = end - job.at, end
        if end % self._pace.chunk == 0 or not self._whole_chunks:
            self._prefixes.put(job.known[:end], total, lambda n: last_tokens(job.cache, n))
        for layer in job.cache:
            layer.compact()
        if end == total:
            job.next = job.choose(logits, greedy(logits))
            mx.async_eval(job.next)
        return count

    def together(self, jobs: Sequence[Job], room: int) -> list[Job]:
        """Of some jobs the first, and those that are best fed with it, `room` tokens at most.

        None of it is known, they are about as long, and what two begin with in common, which would
        be computed once if they came one after the other, is little. One alone is no batch.
        """
        if self._whole_chunks or jobs[0].at:
            return []
        found, total, alike = [], len(jobs[0].known), self._pace.alike
        for job in jobs:
            length, longest = len(job.known), max(len(other.known) for other in [*found, job])
            if (
                not job.at
                and alike * total <= length <= total / alike
                and (len(found) + 1) * longest <= min(room, self._pace.chunk)
                and self._prefixes.same_era(length, total)
                and not any(_shared(job, other) for other in found)
                and self._prefixes.find(job.known) is None
            ):
                found.append(job)
        return found if found[:1] == [jobs[0]] and len(found) > 1 else []

    def feed_together(self, jobs: Sequence[Job]) -> int:
        """Feed whole prompts as rows of one batch, and choose their next tokens; as `feed`."""
        longest = max(len(job.known) for job in jobs)
        pads = [longest - len(job.known) for job in jobs]
        layers = make_cache(self._decoder.spec, pads, self._packing)
        rows = [[0] * pad + job.known for pad, job in zip(pads, jobs, strict=True)]
        logits = self._decoder(mx.array(rows), layers, last=True)[:, -1]  # (B, V)
        likeliest = greedy(logits)
        mx.eval(logits)
        for row, job in enumerate(jobs):
            job.at = job.prefilled = total = len(job.known)

            def last(count: int, row: int = row) -> Segment | None:
                return last_tokens(layers, count, row)

            self._prefixes.put(job.known, total, last)
            job.cache = [layer.take([row]) for layer in layers]
            job.next = job.choose(logits[row], likeliest[row])
        mx.async_eval([job.next for job in jobs])
        return sum(len(job.known) for job in jobs)


def _shared(one: Job, other: Job) -> bool:
    """Whether what two prompts begin with is worth being computed once."""
    pairs = zip(one.known[: SHARED + 1], other.known, strict=False)
    return all(a == b for a, b in pairs)


def last_tokens(layers: Sequence[AnyCache], count: int, row: int = 0) -> Segment | None:
    """The segment of the last tokens of a row; None where a window has dropped some."""
    found = [part for layer in layers if (part := layer.last(count, row)) is not None]
    return found if len(found) == len(layers) else None


def greedy(logits: mx.array) -> mx.array:
    """(..., V) -> (...), in float32: ties go to the lowest id."""
    return mx.argmax(logits.astype(mx.float32), axis=-1)
