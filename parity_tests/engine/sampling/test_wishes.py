"""Wishes that cannot be are refused in one line that names the wish, the value and the range."""

from __future__ import annotations

import math

import pytest

from engine.errors import InvalidRequest
from engine.sampling import ORDERS, Sampler, Sampling

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", v) for v in (-1, -1e-9, NAN, math.inf, "1", None, True)),
        *(("top_k", v) for v in (-1, 1.5, "3", None, True, 2**31)),
        *(("top_p", v) for v in (0, 2, -0.1, NAN, None)),
        *(("min_p", v) for v in (-0.1, 1.1, NAN)),
        *(("typical_p", v) for v in (0, 1.01, NAN)),
        *(("repetition_penalty", v) for v in (0, -1, math.inf, NAN)),
        *(("presence_penalty", v) for v in (math.inf, NAN, "a")),
        *(("frequency_penalty", v) for v in (-math.inf, NAN, [])),
        *(("seed", v) for v in (-1, 2**64, 1.0, "7", True)),
        *(("order", v) for v in ("", "vllm", None)),
        *(("logit_bias", v) for v in ({-1: 1.0}, {"3": 1.0}, {3: NAN}, {3: math.inf}, {3: "x"})),
    ],
)
def test_a_wish_out_of_range_is_one_line(name, value):
    with pytest.raises(InvalidRequest) as caught:
        Sampling(**{name: value})
    message = str(caught.value)
    assert name in message and "\n" not in message and len(message) < 160
    if name != "logit_bias":
        assert repr(value) in message


@pytest.mark.parametrize("order", ORDERS)
def test_the_edges_of_the_ranges_are_wishes(order):
    Sampling(0, 0, 1, 0, 1, 1, 0, 0, {}, None, order)
    Sampling(1e9, 2**31 - 1, 1e-300, 1, 1e-300, 1e9, -1e9, 1e9, {0: -math.inf}, 2**64 - 1, order)


def test_a_bias_outside_the_vocabulary_is_one_line():
    Sampler(Sampling(logit_bias={7: 1.0}), [1], 8)
    with pytest.raises(InvalidRequest, match="names token 8: the vocabulary has 8"):
        Sampler(Sampling(logit_bias={7: 1.0, 8: 1.0}), [1], 8)


def test_a_bias_that_bans_everything_is_refused():
    all_but_one = dict.fromkeys(range(3), -math.inf)
    Sampler(Sampling(logit_bias=all_but_one), [1], 4)
    with pytest.raises(InvalidRequest, match="bans every token"):
        Sampler(Sampling(logit_bias=all_but_one), [1], 3)


@pytest.mark.parametrize(
    ("wish", "greedy", "penalised"),
    [
        ({}, True, False),
        ({"top_p": 0.5, "seed": 3}, True, False),
        ({"temperature": 0.1}, False, False),
        ({"logit_bias": {1: 0.5}}, False, False),
        ({"repetition_penalty": 1.1}, False, True),
        ({"presence_penalty": 0.1}, False, True),
        ({"frequency_penalty": -0.1}, False, True),
    ],
)
def test_what_can_be_one_argmax_and_what_depends_on_the_text(wish, greedy, penalised):
    sampling = Sampling(**wish)
    assert (sampling.plain_greedy, sampling.penalised) == (greedy, penalised)


def test_a_wish_does_not_change_with_what_it_was_made_of():
    bias = {1: 2.0}
    sampling = Sampling(logit_bias=bias)
    bias[1] = math.nan
    assert sampling.logit_bias == {1: 2.0}
