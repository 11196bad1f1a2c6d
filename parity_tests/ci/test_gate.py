"""ci/gate.py: nothing but a verdict of every leg passes it."""

from __future__ import annotations

import json
from datetime import date

import gate
import pytest
from matrix import running

TODAY = date(2026, 11, 25)
LEGS = [leg.name for leg in running("gate", TODAY)]
NEEDS = {"legs": {"result": "success"}, "action": {"result": "success"}}


@pytest.fixture
def verdicts(tmp_path):
    """A folder in which every leg of the gate has passed."""
    for name in LEGS:
        write(tmp_path, name, "pass")
    return tmp_path


def write(folder, name, verdict, says=None):
    file = folder / f"leg-{name}" / "verdict.json"
    file.parent.mkdir(exist_ok=True)
    content = {"schema": gate.SCHEMA, "leg": says or name, "verdict": verdict}
    file.write_text(json.dumps(content))
    return file


def test_all_that_passed_passes(verdicts):
    assert gate.problems(NEEDS, verdicts, TODAY) == []


@pytest.mark.parametrize("result", ["failure", "skipped", "cancelled", None])
@pytest.mark.parametrize("job", ["legs", "action"])
def test_a_job_that_did_not_succeed_fails_it(verdicts, job, result):
    needs = {**NEEDS, job: {"result": result}}
    assert gate.problems(needs, verdicts, TODAY) == [f"job {job}: {result}"]


@pytest.mark.parametrize("name", LEGS)
def test_a_leg_that_left_nothing_fails_it_though_its_job_succeeded(verdicts, name):
    (verdicts / f"leg-{name}" / "verdict.json").unlink()
    found = gate.problems(NEEDS, verdicts, TODAY)
    assert found == [f"leg {name}: no verdict: it did not run to its end"]


@pytest.mark.parametrize("verdict", ["fail", "skip", ""])
def test_a_leg_that_did_not_pass_fails_it(verdicts, verdict):
    write(verdicts, "lint", verdict)
    assert gate.problems(NEEDS, verdicts, TODAY) == [f"leg lint: {verdict}"]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}"])
def test_a_verdict_that_cannot_be_read_fails_it(verdicts, content):
    (verdicts / "leg-lint" / "verdict.json").write_text(content)
    assert gate.problems(NEEDS, verdicts, TODAY) == ["leg lint: its verdict cannot be read"]


def test_a_verdict_stands_for_its_own_leg_alone(verdicts):
    write(verdicts, "macos-15-metal", "pass", says="lint")
    assert gate.problems(NEEDS, verdicts, TODAY) == [
        "leg macos-15-metal: its verdict is another leg's"
    ]


def test_nothing_to_judge_is_no_pass(verdicts, monkeypatch):
    assert gate.problems({}, verdicts, TODAY)
    monkeypatch.setattr(gate, "running", lambda when, today: [])
    assert gate.problems(NEEDS, verdicts, TODAY) == ["no leg is left for the gate"]


def test_status_and_page(verdicts, monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    monkeypatch.setenv("NEEDS", json.dumps(NEEDS))
    assert gate.main([str(verdicts)]) == 0
    write(verdicts, "lint", "fail")
    assert gate.main([str(verdicts)]) == 1
    assert page.read_text().count("## Gate: PASS") == page.read_text().count("## Gate: FAIL") == 1
    monkeypatch.setenv("NEEDS", "")
    assert gate.main([str(verdicts)]) == 2 and gate.main([]) == 2
    assert "NEEDS is not the JSON" in capsys.readouterr().err
