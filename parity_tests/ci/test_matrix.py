"""ci/matrix.py: what runs where, and what happens when an image ends."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import checks
import matrix
import pytest

ROOT = Path(__file__).parents[2]
BEFORE, TODAY = date(2026, 8, 1), date(2026, 11, 25)
SOON = matrix.Image("macos-15", "15", date(2027, 1, 24), "https://example.org")  # 60 days on


@pytest.fixture
def ending(monkeypatch):
    monkeypatch.setitem(matrix.IMAGES, "macos-15", SOON)


def test_legs_have_names_of_their_own_and_checks_that_exist():
    names = [leg.name for leg in matrix.LEGS]
    assert len(set(names)) == len(names)
    for leg in matrix.LEGS:
        assert set(leg.checks) <= set(checks.CHECKS) and leg.checks
        assert leg.when in matrix.WORKFLOWS
        assert leg.mlx in ("oldest", "pinned", "newest")
        assert bool(leg.variable) == (leg.when == "hardware")
        assert leg.image in matrix.IMAGES or leg.variable
        assert ("parity-metal" in leg.checks) <= (leg.device == "metal")


def test_every_check_is_in_a_leg():
    assert {check for leg in matrix.LEGS for check in leg.checks} == set(checks.CHECKS)


def test_the_gate_covers_what_is_promised():
    gate = matrix.running("gate", TODAY)
    seen = {(leg.macos, leg.device) for leg in gate}
    assert {("15", "metal"), ("26", "metal"), ("15", "cpu"), ("26", "cpu")} <= seen
    assert {"ubuntu-24.04", "ubuntu-24.04-arm"} <= {leg.image for leg in gate}
    assert {"oldest", "pinned"} == {leg.mlx for leg in gate}  # another's release blocks nobody
    promised = {"lint", "docs", "wheels", "tests", "cluster", "parity-cpu", "parity-metal", "smoke"}
    assert promised == {check for leg in gate for check in leg.checks}


def test_an_image_that_ended_holds_up_no_gate(ending):
    assert "macos-15" in {leg.image for leg in matrix.running("gate", TODAY)}
    assert SOON.ends is not None
    after = {leg.image for leg in matrix.running("gate", SOON.ends)}
    assert "macos-15" not in after and "macos-26" in after


def test_macos_14_is_data_and_runs_only_where_a_variable_says():
    leg = matrix.by_name("macos-14")
    image = matrix.IMAGES["macos-14"]
    assert image.ends == date(2026, 11, 2) and image.source.endswith("/13518")
    assert leg.when == "hardware" and leg.macos == "14"
    assert matrix.matrix("hardware", TODAY, {}) == []
    assert matrix.matrix("hardware", TODAY, {leg.variable: " "}) == []
    row = {"name": "macos-14", "python": leg.python, "minutes": leg.minutes}
    for value, runner in (("sonoma", "sonoma"), ('["self-hosted", "sonoma"]', None)):
        found = matrix.matrix("hardware", TODAY, {leg.variable: value})
        assert found == [{**row, "runner": runner or ["self-hosted", "sonoma"]}]


def test_warns_sixty_days_before_and_not_earlier(ending):
    assert SOON.ends is not None
    days = {d: matrix.warnings(SOON.ends - timedelta(days=d)) for d in (61, 60, 1, 0, -5)}
    assert days[61] == []
    assert "macos-15 ends on 2027-01-24, in 60 days" in days[60][0]
    assert len(days[1]) == 1 and "https://example.org" in days[1][0]
    assert "ended on 2027-01-24; its legs do not run" in days[0][0] and len(days[-5]) == 1


def test_nothing_is_said_of_an_image_that_only_ones_own_machine_stands_for():
    assert matrix.warnings(BEFORE) == matrix.warnings(TODAY) == []
    hosted = dataclasses.replace(matrix.by_name("macos-14"), variable="")
    assert len(matrix.warnings(TODAY, [hosted])) == 1


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "CI.md").read_text()
    shown = page.partition("<!-- python3 ci/matrix.py markdown -->\n")[2].partition("<!-- end")[0]
    assert shown.strip() == matrix.markdown().strip()


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "ci" / "matrix.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def test_prints_one_line_for_a_workflow():
    done = run("github", "gate")
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    legs = json.loads(done.stdout.removeprefix("legs="))
    assert {"name": "lint", "runner": "ubuntu-24.04", "python": "3.11", "minutes": 30} in legs
    assert run("github", "hardware").stdout == "legs=[]\n"


def test_bad_words_are_answered_in_one_line():
    assert run("github", "weekly").returncode == 2
    done = run("github", "hardware", MAC="[self-hosted")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "MAC" in done.stderr
    with pytest.raises(KeyError, match="no leg 'macos-13': one of lint"):
        matrix.by_name("macos-13")
