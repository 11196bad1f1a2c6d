"""Rows of every family beside each other, and the bits of the deterministic mode."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.kv import packing_of
from engine.sampling import Sampling
from engine.serving import prefixes
from harness.random_models import variants

from .models import CHUNK, SOME, alone, read, requests_of, run, tokens, worded, worker_of

# Some families, and with `-m full` every variant of all


EVERY = [pytest.param(*v, marks=() if v in SOME else pytest.mark.full) for v in variants()]


@pytest.mark.parametrize(("family", "variant"), EVERY)
def test_requests_get_what_they_get_alone(worded_model, family, variant):
    """Of any lengths, beside others, with prefixes that others left, and once more."""
    model = worded_model(family, variant)
    requests = requests_of(len(family + variant), 4, longest=70)
    expected = [alone(model, request) for request in requests]
    for deterministic in (False, True):
        with worker_of(model, max_rows=3, deterministic=deterministic) as worker:
            together = [worker.submit(request) for request in requests]
            assert [tokens(ticket) for ticket in together] == expected
            pieces, done = read(worker.submit(requests[-1]))
        assert [piece.token for piece in pieces] == expected[-1]
        known = len(requests[-1].prompt) - 1
        assert done.cached_tokens == (known - known % CHUNK if deterministic else known)


PACKED = [
    ("llama", "llama3", {"head_dim": 64}),
    ("gpt_oss", "plain", {"head_dim": 64}),
    ("deepseek_v2", "groups", {"kv_lora_rank": 64, "qk_rope_head_dim": 32}),
]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("family", "variant", "changes"), PACKED)
def test_packed_keys_and_values_are_shared_as_plain_ones_are(
    random_model, family, variant, changes, deterministic
):
    model = worded(random_model(family, variant, **changes))
    packing, requests = packing_of(model.spec, 4), requests_of(11, 5, longest=70)
    expected = [alone(model, request, packing) for request in requests]
    assert expected != [alone(model, request) for request in requests], "4 bits show"
    how = {"max_rows": 3, "deterministic": deterministic}
    bytes_kept = []
    for each in (packing, None):
        with worker_of(model, packing=each, **how) as worker:
            together = [tokens(worker.submit(request)) for request in requests]
            _, done = read(worker.submit(max(requests, key=lambda r: len(r.prompt))))
            bytes_kept.append(worker.status.cache_bytes)
        assert (together == expected) is (each is packing)
        assert done.cached_tokens > 0
    assert bytes_kept[0] < bytes_kept[1] / 4


# Deterministic mode


@pytest.mark.parametrize(("family", "variant"), SOME)
def test_bits_do_not_depend_on_the_others(worded_model, family, variant):
    """Tokens and log-probabilities alone, together, in another order and after a restart."""
    check_bits(worded_model(family, variant))


def test_bits_of_packed_keys_and_values_do_not_either(random_model):
    family, variant, changes = PACKED[0]
    model = worded(random_model(family, variant, **changes))
    check_bits(model, packing=packing_of(model.spec, 8))


def check_bits(model, **more):
    requests = [replace(request, logprobs=3) for request in requests_of(5, 6)]
    requests[1::2] = [
        replace(request, sampling=Sampling(temperature=1.0, seed=7)) for request in requests[1::2]
    ]
    seen = []
    for order in ([0, 1, 2, 3, 4, 5], [4, 2, 5, 0, 3, 1]):
        with worker_of(model, deterministic=True, **more) as worker:
            tickets = {n: worker.submit(requests[n]) for n in order}
            seen.append([list(tickets[n].events())[:-1] for n in range(6)])
    with worker_of(model, deterministic=True, **more) as worker:
        seen.append([list(worker.submit(request).events())[:-1] for request in requests])
    assert seen[0] == seen[1] == seen[2]


def test_every_step_has_the_same_rows(worded_model, monkeypatch):
    """What a GPU's kernels are chosen by: however many decode, and with no padding."""
    model = worded_model("gpt_oss", "yarn")
    shapes, call = set(), type(model.decoder).__call__

    def noted(self, tokens, cache, **more):
        if isinstance(cache[0], prefixes.Cache):
            assert cache[0].padding is None and len(tokens) == 1
        else:
            shapes.add(tokens.shape)
        return call(self, tokens, cache, **more)

    monkeypatch.setattr(type(model.decoder), "__call__", noted)
    run(model, requests_of(2, 6), deterministic=True)
    assert shapes == {(4, 1)}
