"""Scores of planted faults: what counts as found and as placed, and what the command says."""

from __future__ import annotations

import json

import pytest

from harness.errors import BadOption
from harness.faults import Fault, NotApplicable, all_faults
from harness.report.scores import as_markdown, misses
from harness.scoreboard import board, by_kind, plan, run_model

TASK = {"model": "llama/tied", "seed": 0, "candidate": "engine", "dtype": "float32"}


def score(fault="", verdict="fail", **more):
    known = {
        "candidate": "engine",
        "model": "llama/tied",
        "dtype": "float32",
        "seed": 0,
        "equivalent": False,
        "block": None,
        "module": None,
        "named": "",
        "diagnosis": "",
    }
    return {"fault": fault, "verdict": verdict, **known, **more}


def test_every_fault_says_what_it_is():
    found = all_faults()
    assert len(found) > 200
    assert sum(fault.equivalent for fault in found.values()) > 20
    for name, fault in found.items():
        assert isinstance(fault, Fault) and fault.what and fault.where, name


def test_a_fault_that_is_found_and_placed_counts_as_such():
    clean, found = run_model({**TASK, "faults": ["attention.scaled-twice"]})
    assert clean["fault"] == "" and clean["verdict"] == "pass"
    assert found["verdict"] == "fail"
    assert found["block"] is True and found["module"] is True


def test_a_fault_without_a_place_has_no_score():
    assert len(run_model({**TASK, "faults": ["experts.one-too-few", "cache.ring-order"]})) == 1


def test_a_candidate_without_the_family_has_no_scores():
    task = {**TASK, "model": "mixtral/full", "candidate": "mlx-lm", "faults": []}
    assert run_model(task) == []


def test_what_is_not_clean_says_nothing_about_faults():
    """mlx-lm 0.32.2 ignores mistral's window."""
    task = {**TASK, "model": "mistral/window", "candidate": "mlx-lm", "faults": None}
    (clean,) = run_model(task)
    assert clean["verdict"] == "fail"


def test_sums_and_misses_agree():
    scores = [
        score("norms.a", "fail", block=True, module=False),
        score("norms.b", "pass"),
        score("norms.c", "pass", equivalent=True),
        score("masks.d", "fail", equivalent=True, named="blocks x"),
        score("", "pass"),
        score("", "fail", named="logits lm_head"),
        score("", "inconclusive"),
        score("", "fail", candidate="mlx-lm"),
    ]
    found = board(scores)
    assert found.detected == (1, 2) and found.block == (1, 1) and found.module == (0, 1)
    assert found.equivalent_quiet == (1, 2)
    assert found.clean_quiet == (2, 3) and found.clean_passed == (1, 3)
    assert set(by_kind(scores)) == {"norms", "masks"}
    lines = misses(scores)
    assert len(lines) == 3
    assert any("norms.b" in line and "not found" in line for line in lines)
    assert any("masks.d" in line and "false alarm" in line for line in lines)
    text = as_markdown(scores)
    assert "float32 1 of 3 (1 open)" in text and "| norms | 3 |" in text


def test_clean_runs_have_seeds_of_their_own():
    tasks = plan(["llama/tied", "tiny-llama"], ["engine", "mlx-lm"], seeds=2, clean_seeds=3)
    planted = [t for t in tasks if t["faults"] is None]
    clean = [t for t in tasks if t["faults"] == []]
    assert len(planted) == 6 and len(clean) == 9
    assert not {t["seed"] for t in clean} & {t["seed"] for t in planted}


def test_a_model_that_is_another_one_where_a_task_runs_is_refused():
    random, named = plan(["gpt2/plain", "tiny-gpt2"], ["engine"], seeds=1, clean_seeds=0)
    assert "identity" not in random and set(named["identity"]) == {"weights", "config", "tokenizer"}
    named |= {"faults": [], "prompts": 1}
    assert [score["verdict"] for score in run_model(named)] == ["pass"]
    other = {**named, "identity": {**named["identity"], "weights": "0" * 64}}
    with pytest.raises(BadOption, match=r"tiny-gpt2 on .* holds another model"):
        run_model(other)


def test_some_faults_may_be_named():
    tasks = plan(["gpt2/plain"], ["engine"], seeds=1, clean_seeds=1, faults=["rotary.backwards"])
    assert [t["faults"] for t in tasks] == [["rotary.backwards"], [], [], []]
    with pytest.raises(BadOption, match=r"--faults 'rotary.sideways': harness faults list"):
        plan(["gpt2/plain"], ["engine"], seeds=1, clean_seeds=0, faults=["rotary.sideways"])


def test_not_applicable_is_told_before_anything_is_changed():
    """Whoever plants must not leave half a fault: a clean run after a refusal stays clean."""
    from engine.files import find_model
    from harness.backends import Request, load_backend
    from harness.faults._patient import Patient

    files = find_model("golden/models/tiny-gpt2")
    fault = all_faults()["rotary.interleaved"]
    with pytest.raises(NotApplicable):
        fault.inject(Patient(load_backend("engine", Request(files, "float32")), files.config), 0)


class TestCommand:
    def test_list_fits_100_columns(self, command):
        found = command("harness", "faults", "list")
        assert found.status == 0
        lines = found.out.splitlines()
        assert len(lines) >= len(all_faults()) and max(map(len, lines)) <= 100

    def test_run_prints_the_scoreboard_and_writes_it(self, command, tmp_path, monkeypatch):
        from harness import faults, scoreboard

        few = {n: f for n, f in all_faults().items() if n in ("norms.swapped", "norms.written-out")}
        monkeypatch.setattr(scoreboard, "all_faults", lambda: few)
        assert faults.all_faults is not scoreboard.all_faults
        path = tmp_path / "scores.json"
        options = ["--models", "llama/tied", "--candidates", "engine", "--clean-seeds", 1]
        found = command("harness", "faults", "run", *options, "--jobs", 1, "--json", path)
        assert found.status == 0, found.out
        assert "| norms | 2 | 2 | 1 of 1 (100.0%)" in found.out
        written = json.loads(path.read_text())
        assert written["schema"] == "harness.scores/1" and len(written["scores"]) == 6

    def test_a_model_that_is_not_there_is_one_line(self, command):
        found = command("harness", "faults", "run", "--models", "no/such", "--jobs", 1)
        assert found.status == 2 and "no/such" in found.err and len(found.err.splitlines()) == 1
