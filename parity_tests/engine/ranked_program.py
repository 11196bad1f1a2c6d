"""What each rank of test_ranks.py runs: models split over ranks beside the same models whole.

`python -m parity_tests.engine.ranked_program FAULT FOLDER...`; rank 0 prints a line of JSON for
each folder. FAULT is "none", or one that is planted on purpose.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import mlx.core as mx
import numpy as np

import engine.layers.ranked
import engine.model
from engine.cache import make_cache
from engine.generate import generate
from engine.launch import end_with_starter
from engine.ranks import Ranks, join
from engine.sharding import Addend, share_of

IDS = [(7 * i + 3) % 50 for i in range(20)]  # windows of 8 are crossed
CHUNKS = (11, 4, 5)


def forgotten_sum(ranks: Ranks) -> None:
    """Rank 0 waits for the sum, and goes on with what it has itself."""
    usual = engine.layers.ranked.Total.__call__

    def call(self, x, *more):
        total = usual(self, x, *more)
        return self.share(x, *more) + 0 * total if ranks.rank == 0 else total

    engine.layers.ranked.Total.__call__ = call


def wrong_slice(ranks: Ranks) -> None:
    """Every rank has what belongs to rank 0."""
    engine.model.share_of = lambda spec, rank, size, places: share_of(spec, 0, size, places)


def bias_twice(ranks: Ranks) -> None:
    """Every rank adds the bias of what is summed."""
    Addend.of = lambda self, whole: whole


def none(ranks: Ranks) -> None:
    """No fault."""


FAULTS = {f.__name__: f for f in (none, forgotten_sum, wrong_slice, bias_twice)}


def logits_of(decoder) -> tuple[mx.array, mx.array]:
    """Logits (T, V) of all tokens at once, and in chunks through the cache."""
    cache, start, pieces = make_cache(decoder.spec), 0, []
    for size in CHUNKS:
        part = mx.array([IDS[start : start + size]])
        pieces.append(decoder(part, cache, length=len(IDS)))
        start += size
    return decoder(mx.array([IDS]))[0], mx.concatenate(pieces, axis=1)[0]


def compared(folder: str, ranks: Ranks, fault: str) -> dict[str, object]:
    whole = engine.model.load(folder).decoder
    FAULTS[fault](ranks)
    split = engine.model.load(folder, ranks=ranks).decoder
    expected, _ = logits_of(whole)
    actual, chunked = logits_of(split)
    scale = mx.sqrt(mx.mean(mx.square(expected)))
    errors = [mx.sqrt(mx.mean(mx.square(x - expected))) / scale for x in (actual, chunked)]
    every = np.array(ranks.gathered(mx.stack([actual, chunked])))
    tokens = [list(generate(decoder, IDS, 5)) for decoder in (whole, split)]
    return {
        "errors": [float(error.item()) for error in errors],
        "same bits": all(np.array_equal(every[0], each) for each in every),
        "same tokens": tokens[0] == tokens[1],
        "bytes": ranks.numbers(sum(map(partial(_bytes, split), split.shapes()))),
        "whole bytes": sum(map(partial(_bytes, whole), whole.shapes())),
    }


def _bytes(decoder, path: str) -> int:
    found = decoder
    for step in path.split("."):
        found = found[int(step)] if step.isdigit() else found[step]
    return found.nbytes


if __name__ == "__main__":
    end_with_starter()
    group = join()
    assert group is not None
    for folder in sys.argv[2:]:
        result = compared(folder, group, sys.argv[1])
        if group.rank == 0:
            print(json.dumps(result), flush=True)
