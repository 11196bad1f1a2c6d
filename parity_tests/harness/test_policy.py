"""The rule that decides: what is never passed, what few prompts leave open, what chance may do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.limits import Limits, Row, bounded_share, find_limits, read_limits, write_limits
from harness.metrics import FLOOR
from harness.policy import decide, effective_noise, upper_bound

ROW = Row(limit=4.0, scatter=0.2, runs=300, benign=2.0)


def verdict(ratios, tests=1, row=ROW, **more):
    known = {"measure": "isolated", "dtype": "float32", "kind": "random", **more}
    return decide(ratios, row, tests, **known)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_fails_whatever_else_there_is(odd):
    assert verdict([1.0, odd, 1.0]).verdict == "fail"


def test_well_below_passes_well_above_fails_and_between_is_open():
    assert verdict([1.0]).verdict == "pass"
    assert verdict([20.0]).verdict == "fail"
    found = verdict([4.0])
    assert found.verdict == "inconclusive"
    assert found.more is not None
    assert found.low < 4.0 < found.high


@given(st.floats(0.6, 30.0).filter(lambda r: abs(math.log(r / 4.0)) > 0.05))
def test_as_many_more_prompts_as_promised_decide(ratio):
    first = verdict([ratio, ratio])
    if first.verdict == "inconclusive":
        assert first.more is not None
        later = verdict([ratio] * (2 + first.more))
        assert later.verdict == ("pass" if ratio < 4.0 else "fail")


def test_one_prompt_that_shows_a_defect_is_not_diluted_by_others():
    assert verdict([1.0] * 50 + [40.0]).verdict == "fail"


def test_more_things_judged_together_ask_for_more_distance():
    assert verdict([6.5], tests=1).verdict == "fail"
    assert verdict([6.5], tests=1000).verdict == "inconclusive"


def test_without_an_oracle_nothing_finite_is_judged():
    assert verdict([1.0], has_oracle=False).verdict == "inconclusive"
    assert verdict([1e9], has_oracle=False).verdict == "inconclusive"
    assert verdict([math.inf], has_oracle=False).verdict == "fail"


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6), st.integers(1, 200))
def test_a_runs_score_is_the_smallest_limit_it_passes(ratios, tests):
    score = upper_bound(ratios, ROW.scatter, tests)
    for factor, expected in ((1.001, "pass"), (0.999, "not")):
        row = Row(score * factor, ROW.scatter, 300, 1.0)
        found = verdict(ratios, tests, row).verdict
        if expected == "not":
            assert found != "pass"
        else:  # one prompt far above the others may still fail by itself
            assert found in ("pass", "fail")
            assert found == "pass" or max(ratios) > row.limit


def test_chance_alone_seldom_fails_a_run_that_is_as_far_off_as_any_benign_one():
    """Every site at the benign bound, half the limit: no failure in 2,000 drawn runs."""
    random = np.random.default_rng(0)
    draws = 2.0 * np.exp(ROW.scatter * random.standard_normal((2000, 3)))
    found = [verdict(list(draw), tests=40).verdict for draw in draws]
    assert found.count("fail") == 0
    assert found.count("pass") > 1900


def test_noise_is_floored():
    assert effective_noise(0.0, "bfloat16") == FLOOR["bfloat16"]
    assert effective_noise(1e-2, "bfloat16") == 1e-2


def test_the_share_that_the_largest_of_n_bounds():
    """n = 59 for 95 %, n = 299 for 99 %, both at 95 % confidence (Wilks)."""
    assert [bounded_share(n) for n in (58, 59, 298, 299)] == [None, 0.95, 0.95, 0.99]


def test_tables_of_limits_survive_the_disk_and_say_what_is_wrong(tmp_path):
    limits = Limits("cpu-test", "", {("isolated", "float32", "random"): ROW}, {"bfloat16": 0.9})
    path = tmp_path / "cpu-test.json"
    write_limits(path, limits, {"date": "2026-11-23"})
    again = read_limits(path)
    assert again.rows == limits.rows
    assert again.low == limits.low
    path.write_text(path.read_text().replace('"limit": 4.0', '"limit": "NaN"'))
    with pytest.raises(Exception, match="not a positive number") as caught:
        read_limits(path)
    assert "harness calibrate" in str(caught.value)


def test_a_table_made_here_wins_and_an_unknown_class_says_that_it_is_uncalibrated(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MLX_PARITY_LIMITS", str(tmp_path))
    borrowed = find_limits("metal-nobody-has-this")
    assert not borrowed.describe()["calibrated"]
    assert borrowed.rows
    write_limits(
        tmp_path / "cpu-x86_64.json",
        Limits("cpu-x86_64", "", {("isolated", "float32", "random"): ROW}, {}),
        {},
    )
    assert find_limits("cpu-x86_64").source == str(tmp_path / "cpu-x86_64.json")


def test_a_kind_that_was_never_measured_gets_the_widest_row():
    wide = Row(9.0, 0.1, 60, 4.5)
    rows = {("isolated", "float32", "a"): ROW, ("isolated", "float32", "b"): wide}
    found = Limits("x", "", rows, {}).row("isolated", "float32", "prompt")
    assert (found.limit, found.scatter) == (9.0, 0.2)
