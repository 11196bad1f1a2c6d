"""A comparison runs no model twice where once would do, by the ledger of benchmarks/cost.py."""

from __future__ import annotations

import importlib
import weakref
from pathlib import Path
from typing import Any

import pytest

import harness
import harness.judge
from harness.backends.engine import EngineBackend
from harness.backends.torch import TorchBackend
from harness.checks import observer, repeat
from harness.judge import comparison_of
from harness.random_models import config_of, write_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def ledger(monkeypatch):
    """Every load and forward of this test."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("_ledger")
    found = module.Ledger()
    with module.watching(found, EngineBackend, TorchBackend):
        yield found


@pytest.fixture(scope="module")
def stored_in_bfloat16(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama-bfloat16")
    return write_model(folder, config_of("llama", "tied"), "bfloat16")


def sides(ledger) -> list[tuple[str, str]]:
    return [(load.side, load.dtype) for load, *_ in ledger.loads]


def oracle_runs(ledger, mode: str) -> int:
    return sum(run.side == "oracle" and run.mode == mode for run, *_ in ledger.forwards)


def test_a_comparison_runs_nothing_in_vain(ledger, random_model):
    verdict = harness.compare(random_model("llama", "tied"), progress=ledger.tell)
    assert verdict.verdict == "pass"
    assert ledger.twice() == []
    assert sides(ledger) == [(s, "float32") for s in ("candidate", "reference", "oracle")]


def test_one_oracle_serves_both_rungs_of_a_model_stored_at_the_later_one(
    ledger, stored_in_bfloat16
):
    verdict = harness.compare(stored_in_bfloat16, dtype="bfloat16", progress=ledger.tell)
    assert verdict.verdict == "pass"
    assert ledger.twice() == []
    assert sides(ledger).count(("oracle", "float32")) == 1 == len(ledger.loads) - 4
    probes = {tuple(run.tokens) for run, *_ in ledger.forwards if run.mode == "isolated"}
    assert oracle_runs(ledger, "propagated") == len(probes)


def test_the_ledger_sees_what_is_run_in_vain(ledger, stored_in_bfloat16, monkeypatch):
    """The same comparison, made to forget the first rung's oracle."""
    monkeypatch.setattr(harness.judge, "floating_dtypes", lambda paths: set())
    harness.compare(stored_in_bfloat16, dtype="bfloat16", progress=ledger.tell)
    load, *runs = [each for each, *_ in ledger.twice()]
    assert (load.side, load.dtype) == ("oracle", "bfloat16")
    # All but the greedy probe, where the reference takes other tokens at the other dtype.
    assert len(runs) >= oracle_runs(ledger, "propagated") // 2 - 1 > 0
    assert {(run.side, run.mode) for run in runs} == {("oracle", "propagated")}


def test_weights_that_rounding_changes_have_an_oracle_at_each_rung(ledger, random_model):
    harness.compare(random_model("llama", "tied"), dtype="bfloat16", checks=["blocks"])
    assert sides(ledger).count(("oracle", "float32")) == 1
    assert sides(ledger).count(("oracle", "bfloat16")) == 1


def test_looking_inside_a_block_runs_no_whole_pass_again(ledger, tiny_llama):
    comparison = comparison_of(tiny_llama)
    probe = comparison.longest("random")
    assert probe is not None
    comparison.observation(probe)
    before = len(ledger.forwards)
    assert comparison.modules(probe, 1)
    inside = [run for run, *_ in ledger.forwards[before:]]
    assert {run.mode for run in inside} == {"isolated, inside block 1"}
    assert [run.side for run in inside] == [
        "candidate", "oracle", "oracle", "reference", "candidate"
    ]  # fmt: skip


def test_the_reference_takes_no_greedy_tokens_where_nobody_asks_for_them(ledger, tiny_llama):
    harness.compare(tiny_llama, checks=["blocks"], kinds=["single"])
    assert "greedy" not in {run.mode for run, *_ in ledger.forwards}
    harness.compare(tiny_llama, checks=["blocks"], kinds=["single", "greedy"])
    assert [r.side for r, *_ in ledger.forwards if r.mode == "greedy"] == ["reference"]


def test_one_bare_pass_serves_observer_and_repeat(ledger, tiny_llama):
    comparison = comparison_of(tiny_llama)
    assert observer.run(comparison).verdict == "pass"
    ledger.asking, before = "repeat", len(ledger.forwards)
    assert repeat.run(comparison).verdict == "pass"
    assert len(ledger.forwards) - before == 4


def test_repeat_alone_runs_its_probe_three_times(ledger, tiny_llama):
    comparison = comparison_of(tiny_llama)
    before = len(ledger.forwards)
    assert repeat.run(comparison).verdict == "pass"
    assert len(ledger.forwards) - before == 5


def test_nothing_of_a_rung_is_in_memory_when_the_next_one_is_loaded(tiny_llama, monkeypatch):
    """Counted by references alone: a cycle would keep both models until the collector runs."""
    seen: list[weakref.ref] = []
    alive: list[int] = []
    load = harness.judge.load_sides

    def watched(*args, **options):
        alive.append(sum(ref() is not None for ref in seen))
        found = load(*args, **options)
        reference: Any = found.reference
        seen.extend(weakref.ref(side) for side in (found, found.candidate, reference))
        seen.append(weakref.ref(reference.truth.backend))
        return found

    monkeypatch.setattr(harness.judge, "load_sides", watched)
    harness.compare(tiny_llama, dtype="bfloat16", checks=["blocks"])
    assert alive == [0, 0] and len(seen) == 8
