"""Limits from harmless runs: what they bound, what is refused, and the command that makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import calibration
from harness.calibration import HEADROOM, NotHarmless, calibrate, table
from harness.limits import read_limits
from harness.policy import decide, upper_bound

ratios = st.floats(0.01, 4.0)
groups = st.lists(st.lists(ratios, min_size=3, max_size=3), min_size=1, max_size=4)


def run(*found, mean=1.0, measure="isolated", candidate="engine"):
    return {
        "candidate": candidate,
        "dtype": "float32",
        "model": "llama/tied",
        "mean_ratio": mean,
        "groups": [[measure, "random", len(found), list(each)] for each in found],
    }


@given(st.lists(groups, min_size=1, max_size=5))
@settings(deadline=None)
def test_every_run_a_table_is_made_of_passes_under_it(found):
    made = table([run(*each) for each in found], "cpu-x86_64")
    row = made.rows["isolated", "float32", "random"]
    assert row.runs == len(found)
    for each in found:
        for one in each:
            given = {"measure": "isolated", "dtype": "float32", "kind": "random"}
            assert decide(one, row, len(each), **given).verdict == "pass"
            assert HEADROOM * upper_bound(one, row.scatter, len(each)) <= row.limit * (1 + 1e-9)


def test_one_run_more_never_lowers_a_limit():
    few = [run([1.0, 1.1, 0.9]), run([1.2, 1.0, 1.1])]
    more = [*few, run([2.5, 2.4, 2.6])]
    key = "isolated", "float32", "random"
    assert table(more, "x").rows[key].limit > 1.5 * table(few, "x").rows[key].limit


@pytest.mark.parametrize("ratio", [17.0, float("inf"), float("nan")])
def test_what_is_not_harmless_makes_no_limit(ratio):
    with pytest.raises(NotHarmless, match=r"torch:odd on llama/tied at float32"):
        table([run([1.0]), run([1.0, ratio], candidate="torch:odd")], "cpu-x86_64")


def test_the_smallest_mean_ratio_is_kept():
    assert table([run([1.0], mean=0.9), run([1.0], mean=0.7)], "x").low == {"float32": 0.7}


@pytest.fixture
def quick(monkeypatch):
    """Two variants, and runs that are made up: each model has the row of its name."""
    scored = []

    def score(task):
        scored.append((task["model"], task["seed"]))
        kind = task["model"].partition("/")[2]
        return [{**run([1.0, 1.2]), "model": task["model"], "groups": [["head", kind, 1, [1.0]]]}]

    monkeypatch.setattr(calibration, "scored", score)
    monkeypatch.setattr(calibration, "variants", lambda: [("a", "x"), ("b", "y")])
    return scored


def test_models_are_made_until_every_row_has_enough_runs(quick, tmp_path):
    path = calibrate(2, least=5, out=tmp_path / "table.json")
    assert len(quick) == len(set(quick)) == 10
    assert {row.runs for row in read_limits(path).rows.values()} == {5}


def test_the_table_says_how_it_was_made(quick, tmp_path):
    path = calibrate(3, least=1, out=tmp_path / "table.json")
    content = json.loads(path.read_text())
    assert content["benign_runs"] == 6 and content["headroom"] == HEADROOM
    assert content["packages"]["mlx"] and content["date"] and content["device"]


def test_a_sweep_that_was_interrupted_goes_on(quick, tmp_path):
    calibrate(2, least=1, out=tmp_path / "a.json", resume=tmp_path / "runs.jsonl")
    before = len(quick)
    calibrate(3, least=1, out=tmp_path / "b.json", resume=tmp_path / "runs.jsonl")
    assert len(quick) == before + 2


def test_a_real_run_writes_the_table_that_is_then_used(monkeypatch, tmp_path, command, tiny_llama):
    monkeypatch.setattr(calibration, "variants", lambda: [("llama", "tied")])
    monkeypatch.setattr(calibration, "DTYPES", ("float32",))
    monkeypatch.setenv("MLX_PARITY_LIMITS", str(tmp_path))
    made = command("harness", "calibrate", "--seeds", 1, "--runs", 1)
    assert made.status == 0
    path = made.out.strip()
    limits = read_limits(Path(path))
    assert {m for m, _, _ in limits.rows} >= {"isolated", "propagated", "module", "head", "route"}
    assert all(1 < row.limit < 32 for row in limits.rows.values())
    verdict = tmp_path / "verdict.json"
    command("harness", "compare", "--model", tiny_llama, "--checks", "logits", "--json", verdict)
    assert json.loads(verdict.read_text())["calibration"]["source"] == path


def test_no_models_make_no_table(command):
    found = command("harness", "calibrate", "--seeds", 0)
    assert found.status == 2 and "--seeds 0" in found.err
