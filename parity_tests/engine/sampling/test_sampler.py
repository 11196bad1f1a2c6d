"""Draws follow the probabilities, keys belong to requests, log-probabilities are the model's."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from engine.sampling import ORDERS, Sampler, Sampling, best, logprobs

from .reference import softmax

DRAWS = 3000


def drawn(sampler, x, count=DRAWS):
    return np.array(mx.stack([sampler(x) for _ in range(count)]))


def distance(tokens, p):
    """Pearson's statistic over its mean, in its standard deviations: chi-square, V-1 freedoms."""
    expected = p[p > 0] * tokens.size
    seen = np.bincount(tokens, minlength=p.size)[p > 0]
    freedoms = expected.size - 1
    return (((seen - expected) ** 2 / expected).sum() - freedoms) / math.sqrt(2 * freedoms)


@pytest.mark.parametrize("order", ORDERS)
def test_draws_follow_the_probabilities(order):
    """Five deviations; the control, a tenth more temperature, is beyond them."""
    x = mx.random.normal((12,), key=mx.random.key(0)) * 2
    wish = {"top_k": 9, "top_p": 0.97, "seed": 5, "order": order}
    sampler = Sampler(Sampling(temperature=0.8, **wish), [], 12)
    tokens = drawn(sampler, x)
    p = softmax(np.array(sampler.scores(x), np.float64))
    assert set(tokens.tolist()) <= set(np.flatnonzero(p).tolist())
    assert distance(tokens, p) < 5
    warmer = Sampler(Sampling(temperature=1.0, **wish), [], 12)
    assert distance(drawn(warmer, x), p) > 5


def test_a_token_depends_on_seed_step_and_logits_alone():
    """Not on the global state, on other requests, or on what the logits of earlier steps were."""
    x = mx.random.normal((50,), key=mx.random.key(1))
    wish = Sampling(temperature=1.0, seed=11)
    alone = drawn(Sampler(wish, [3], 50), x, 20)
    one, other = Sampler(wish, [3], 50), Sampler(Sampling(temperature=1.0, seed=12), [3], 50)
    mixed = []
    for n in range(20):
        mx.random.seed(n)
        other(x)
        mixed.append(one(x if n % 2 else -x).item())
    assert mixed[1::2] == alone[1::2].tolist()
    assert (
        drawn(Sampler(Sampling(temperature=1.0, seed=12), [3], 50), x, 20).tolist()
        != alone.tolist()
    )


def test_without_a_seed_each_request_has_its_own():
    seeds = {Sampler(Sampling(temperature=1.0), [1], 4).seed for _ in range(8)}
    assert len(seeds) == 8
    x = mx.zeros((100,))
    again = Sampler(Sampling(temperature=1.0), [1], 100)
    first = drawn(again, x, 10).tolist()
    assert (
        drawn(Sampler(Sampling(temperature=1.0, seed=again.seed), [1], 100), x, 10).tolist()
        == first
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_not_allowed_is_never_drawn(temperature):
    x = mx.arange(40).astype(mx.float32)
    allowed = mx.array([i in (3, 5) for i in range(40)])
    sampler = Sampler(Sampling(temperature=temperature, seed=1), [1], 40)
    assert {sampler(x, allowed).item() for _ in range(50)} <= {3, 5}
    assert sampler(x).item() not in {3, 5}
    only = mx.arange(40) == 7
    assert {sampler(x, only).item() for _ in range(5)} == {7}


def test_a_ban_of_all_but_one_leaves_that_one():
    bias = {i: -math.inf for i in range(9) if i != 4}
    for temperature in (0.0, 1.0):
        sampler = Sampler(Sampling(temperature=temperature, logit_bias=bias, seed=0), [0], 9)
        assert drawn(sampler, mx.arange(9) * 1.0, 20).tolist() == [4] * 20


@pytest.mark.parametrize(
    ("wish", "text", "expected"),
    [
        ({}, [], 0),
        ({"repetition_penalty": 3.0}, [0], 1),
        ({"presence_penalty": 1.5}, [0], 1),
        ({"frequency_penalty": 0.8}, [0], 0),
        ({"frequency_penalty": 0.8}, [0, 0], 1),
        ({"logit_bias": {2: 5.0}}, [], 2),
    ],
)
def test_greedy_takes_the_best_after_bias_and_penalties(wish, text, expected):
    sampler = Sampler(Sampling(top_p=0.01, **wish), [], 4)
    for token in text:
        sampler.took(token)
    assert sampler(mx.array([3.0, 2.0, 1.0, 0.0])).item() == expected


@pytest.mark.parametrize(("order", "reach"), [("mlx-lm", 20), ("llama.cpp", 64)])
def test_penalties_forget_what_left_their_window(order, reach):
    sampler = Sampler(Sampling(repetition_penalty=100.0, order=order), [0], 3)
    x = mx.array([3.0, 2.0, 0.0])
    for _ in range(reach - 1):
        sampler.took(2)
    assert sampler(x).item() == 1
    sampler.took(2)
    assert sampler(x).item() == 0


def test_nothing_is_computed_before_it_is_asked_for():
    """A step may be queued while the last one runs: no value is read in between."""
    wish = Sampling(0.7, 5, 0.9, 0.01, 0.9, 1.2, 0.1, 0.1, {1: 1.0}, 4)
    mx.synchronize()
    before = mx.get_active_memory()
    big = mx.zeros((1_000_000,))
    Sampler(wish, [1, 2], 1_000_000)(big)
    assert mx.get_active_memory() - before < big.nbytes / 2


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_log_probabilities_are_those_of_float64(dtype):
    x = (mx.random.normal((3, 700), key=mx.random.key(9)) * 6).astype(dtype)
    y = np.array(x.astype(mx.float32), np.float64)
    expected = y - np.log(np.exp(y).sum(-1, keepdims=True))
    actual = logprobs(x)
    assert actual.dtype == mx.float32
    assert np.abs(np.array(actual) - expected).max() < 1e-5


def test_the_best_are_the_highest_in_order():
    values = logprobs(mx.random.normal((60,), key=mx.random.key(4)))
    ids, top = best(values, 5)
    expected = np.argsort(-np.array(values))[:5]
    assert ids.tolist() == expected.tolist()
    assert top.tolist() == np.array(values)[expected].tolist()
    assert best(values, 100)[0].size == 60
