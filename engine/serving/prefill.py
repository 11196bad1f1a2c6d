"""Feeding a prompt, a chunk at a time, less what is known of it already.

Chunks end at multiples of their size, counted from the first token, wherever a known prefix ends.
Nothing here knows rows that decode.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..cache import AnyCache, make_cache
from ..decoder import Decoder
from .job import Job
from .prefixes import Prefixes, Segment


class Prefill:
    """`chunk` is in tokens. `whole_chunks`: what ends otherwise is not kept for others."""

    def __init__(
        self, decoder: Decoder, prefixes: Prefixes, chunk: int, whole_chunks: bool
    ) -> None:
        self._decoder, self._prefixes = decoder, prefixes
        self._chunk, self._whole_chunks = chunk, whole_chunks

    def feed(self, job: Job) -> int:
        """Feed the next chunk of what a job knows; with the last one its next token is chosen.

        Returns how many tokens were computed. What others have computed since the last chunk is
        taken over.
        """
        total = len(job.known)
        if not job.at:
            job.cache, job.prefilled = make_cache(self._decoder.spec), total
        if (known := self._prefixes.find(job.known, job.at)) is not None:
            job.cache, before, job.at = known, job.at, known[0].offset
            if not job.made:  # else it is fed again, and has been counted
                job.cached += job.at - before

        end = min(total, job.at - job.at % self._chunk + self._chunk)
        tokens = mx.array([job.known[job.at : end]])
        logits = self._decoder(tokens, job.cache, length=total, last=True)[0, -1]
        # Of a chunk that others follow, the last block and the head are nobody's wish.
        mx.eval(logits if end == total else [layer.arrays for layer in job.cache])
        count, job.at = end - job.at, end
        if end % self._chunk == 0 or not self._whole_chunks:
            self._prefixes.put(job.known[:end], total, lambda n: last_tokens(job.cache, n))
        for layer in job.cache:
            layer.compact()
        if end == total:
            job.next = job.choose(logits, greedy(logits))
            mx.async_eval(job.next)
        return count


def last_tokens(layers: Sequence[AnyCache], count: int, row: int = 0) -> Segment | None:
    """The segment of the last tokens of a row; None where a window has dropped some."""
    found = [part for layer in layers if (part := layer.last(count, row)) is not None]
    return found if len(found) == len(layers) else None


def greedy(logits: mx.array) -> mx.array:
    """(..., V) -> (...), in float32: ties go to the lowest id."""
    return mx.argmax(logits.astype(mx.float32), axis=-1)
