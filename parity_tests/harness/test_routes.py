"""Logits of another route: what a choice between equal experts excuses, and what it does not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from harness.comparison import Observation
from harness.limits import Limits, Row
from harness.routes import ROUTE, measured
from harness.types import LOGITS, PROPAGATED, Evidence, Probe

TOKENS, NOISE, LIMIT = 40, 1e-3, 3.0
ORACLE = np.random.default_rng(0).standard_normal((TOKENS, 50))
ROWS = {(ROUTE, "float16", "random"): Row(LIMIT, scatter=0.1, runs=100, benign=1.0)}
COMPARISON = SimpleNamespace(dtype="float16", limits=Limits("test", "test", ROWS, low={}))


def noisy(seed, **tokens):
    """The oracle's logits with noise, so many times as much at tokens `t0`, `t1`, ..."""
    scale = np.ones((TOKENS, 1))
    for token, times in tokens.items():
        scale[int(token[1:])] = times
    return ORACLE + scale * NOISE * np.random.default_rng(seed).standard_normal(ORACLE.shape)


def ratio(actual, close):
    evidence = Evidence({PROPAGATED: {LOGITS: ORACLE}}, {}, {}, noisy(1))
    near = np.zeros(TOKENS, bool)
    near[list(close)] = True
    seen = Observation(
        Probe("p", "random", "", tuple(range(TOKENS))), [], evidence, actual, None, near
    )
    return measured(COMPARISON, seen, actual).ratio


def test_a_close_choice_made_otherwise_is_left_out():
    assert ratio(noisy(2, t30=50), close=[30]) < LIMIT


def test_it_is_left_out_after_a_token_that_is_merely_noisier_than_most():
    assert ratio(noisy(2, t20=1.2 * LIMIT, t30=50), close=[30]) < LIMIT


@pytest.mark.parametrize("close", [[], [5], [31]])
def test_a_token_off_where_no_choice_was_close_counts(close):
    assert ratio(noisy(2, t30=50), close) > LIMIT


def test_a_defect_before_a_close_choice_counts():
    assert ratio(noisy(2, t20=50, t30=50), close=[30]) > LIMIT
