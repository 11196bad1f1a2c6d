"""ci/leg.py: a leg runs, and what goes wrong in one is found, told and kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import checks
import leg
import pytest
from checks import Step, Wrong
from matrix import by_name

ROOT = Path(__file__).parents[2]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def refuse(log: str) -> str:
    raise Wrong(f"saw {log.strip()!r}")


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Run steps as the check `lint` of its leg; the exit status and verdict.json."""

    def run(*steps: Step, setup: tuple[Step, ...] = ()) -> tuple[int, dict]:
        monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
        monkeypatch.setitem(leg.CHECKS, "lint", lambda place: iter(steps))
        monkeypatch.setattr(leg, "set_up", lambda place: iter(setup))
        status = leg.main(["lint", "--here", "--out", str(tmp_path)])
        return status, json.loads((tmp_path / "verdict.json").read_text())

    return run


def test_what_passes_is_kept(ran, tmp_path):
    status, verdict = ran(Step("one", python("print('fine')"), judge=lambda log: log.strip()))
    assert status == 0 and verdict["verdict"] == "pass"
    assert verdict["steps"][0]["seen"] == "fine" and verdict["leg"] == "lint"
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suite.get("tests") == "1" and suite.get("failures") == "0"
    assert "`lint`: PASS" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("step", "seen"),
    [
        (Step("one", python("import sys; print('bad'); sys.exit(3)")), "exit status 3"),
        (Step("one", python("print('no')"), judge=refuse), "saw 'no'"),
        (Step("one", python("import time; print(1, flush=True); time.sleep(60)"), 1), "after 1 s"),
    ],
    ids=["status", "judge", "time"],
)
def test_what_fails_is_told_and_the_next_step_still_runs(ran, tmp_path, step, seen):
    status, verdict = ran(step, Step("two", python("")))
    assert status == 1 and verdict["verdict"] == "fail"
    assert [s["verdict"] for s in verdict["steps"]] == ["fail", "pass"]
    assert seen in verdict["steps"][0]["seen"]
    failure = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testcase/failure")
    assert failure is not None and seen in (failure.get("message") or "")


def test_without_an_environment_nothing_runs(ran):
    bad = Step("environment", python("raise SystemExit(2)"))
    status, verdict = ran(Step("one", python("")), setup=(bad,))
    assert status == 1 and [s["verdict"] for s in verdict["steps"]] == ["fail", "skip"]
    assert verdict["steps"][1]["seen"] == "environment failed"


def test_a_leg_without_steps_has_not_passed(ran):
    status, verdict = ran()
    assert status == 1 and verdict["verdict"] == "fail"


def test_a_report_of_an_earlier_run_is_not_taken_for_this_one(ran, tmp_path):
    old = tmp_path / "old.json"
    old.write_text('{"verdict": "pass", "environment": {}}')

    def judge(log: str) -> str:
        return old.read_text()

    status, verdict = ran(Step("one", python(""), judge=judge, report=old))
    assert status == 1 and "old.json" in verdict["steps"][0]["seen"]


def test_names_that_are_none_are_refused(capsys):
    for arguments in (["macos-13"], ["lint", "--only", "smoke"]):
        with pytest.raises(SystemExit) as stop:
            leg.main(arguments)
        assert stop.value.code == 2
    assert "no check smoke: one of lint" in capsys.readouterr().err


def test_only_legs_that_need_it_see_another_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MLX_PARITY_LIMITS", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/mine")
    seen = {
        name: leg.variables(checks.Place(by_name(name), tmp_path))
        for name in ("linux-x64", "linux-x64-oldest", "macos-15-metal")
    }
    assert seen["linux-x64"] == dict(os.environ)  # the tests run as anybody runs them
    assert seen["linux-x64-oldest"]["PYTHONPATH"] == f"{tmp_path / 'mlx'}:/mine"
    assert seen["macos-15-metal"]["MLX_PARITY_LIMITS"].endswith("/.cache/limits")


def test_the_smoke_test_runs_here(tmp_path):
    command = [sys.executable, "ci/leg.py", "linux-x64", "--here", "--only", "smoke"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
    step = json.loads((tmp_path / "verdict.json").read_text())["steps"][-1]
    assert "backend=mlx device=cpu, decode: 10 tokens" in step["seen"] and step["seconds"] < 60


def test_parity_on_the_cpu_runs_here(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "GOLDEN", ("tiny-gpt2",))
    status = leg.main(["linux-x64", "--here", "--only", "parity-cpu", "--out", str(tmp_path)])
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert status == 0, verdict
    assert "limits cpu-" in verdict["steps"][-1]["seen"]
    assert verdict["environment"]["packages"]["mlx"] == checks.mlx_version("pinned")


def test_a_broken_port_fails_a_leg_with_its_first_divergence(ran, monkeypatch, tmp_path):
    report = tmp_path / "broken.json"
    (tmp_path / "broken.py").write_text(
        "import numpy as np\ndef logits(tokens):\n    return np.zeros((len(tokens), 512), 'f')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ("--model", "golden/models/tiny-llama", "--candidate", "python:broken:logits")
    command = (sys.executable, "-m", "harness", "compare", *options, "--reference", "golden")
    status, verdict = ran(Step("compare", (*command, "--json", str(report)), report=report))
    assert status == 1 and verdict["first_divergence"]["site"] == "lm_head"
    page = (tmp_path / "summary.md").read_text()
    assert "**First divergence**" in page and "**Diagnosis**" in page and "mlx " in page
