"""`harness bisect` as users run it: an index of wheels, environments, a process for each release.

Some ten processes that import MLX: seconds, spent once for all tests here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PORT, Index, only

ROOT = Path(__file__).parents[3]
RIGHT, WRONG = f"SCALE = 1.0\n{PORT}", f"SCALE = 1.01\n{PORT}"
CRASH = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"


class Bisected:
    """Runs of the command against one index and one cache."""

    def __init__(self, folder: Path) -> None:
        self.index, self.cache = Index(folder / "simple"), folder / "cache"
        self._out = folder / "found.json"
        self.variables = {**os.environ, "PYTHONPATH": str(ROOT)}
        only(self.index, self.variables.__setitem__, lambda name, raising: self._without(name))

    def _without(self, name: str) -> None:
        self.variables.pop(name, None)

    def run(self, good, bad, *more, **variables):
        command = [sys.executable, "-m", "harness", "bisect", "--model", "tiny-llama"]
        command += ["--package", "tinyport", "--candidate", "python:tinyport:logits"]
        command += ["--good", good, "--bad", bad, "--reference", "golden"]
        command += ["--cache", str(self.cache), "--json", str(self._out), *more]
        known = {**self.variables, **variables}
        done = subprocess.run(command, capture_output=True, text=True, env=known, cwd=ROOT)
        return done, json.loads(self._out.read_text())


@pytest.fixture(scope="module")
def bisected(tmp_path_factory) -> Bisected:
    made = Bisected(tmp_path_factory.mktemp("bisect"))
    made.index.add("1.0", RIGHT)
    made.index.add("1.1", RIGHT)
    made.index.add("1.2", CRASH)
    made.index.add("1.3", RIGHT)
    made.index.add("1.4", WRONG, yanked="wrong")
    made.index.add("1.5", WRONG)
    made.index.add("1.6rc1", WRONG)
    made.index.add("1.7", WRONG)
    return made


@pytest.fixture(scope="module")
def found(bisected):
    return bisected.run("1.0", "1.7")


def test_the_release_that_moved_the_numbers_is_found(found):
    done, document = found
    assert done.returncode == 1, done.stderr
    assert document["schema"] == "harness.bisect/1" and document["verdict"] == "moved"
    (step,) = document["steps"]
    assert (step["before"], step["after"]) == ("1.3", "1.5")
    assert step["first"]["site"] == "model.layers.1" and step["direction"] == "worse"
    assert "MOVED: tinyport 1.5" in done.stdout
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 100


def test_a_crash_is_a_result(found):
    tried = {entry["release"]: entry for entry in found[1]["releases"]}
    assert tried["1.2"]["answer"] is None and tried["1.2"]["why"] == "its process ended with -11"
    assert "its process ended with -11" in found[0].stdout


def test_what_was_not_tried_is_listed_with_the_reason(found):
    assert found[1]["skipped"] == {"1.4": "yanked: wrong", "1.6rc1": "a pre-release"}
    assert "not tried: 1.4, yanked: wrong" in found[0].stdout


def test_no_more_environments_are_made_than_needed(found, bisected):
    made = {path.name.split("-")[1] for path in bisected.cache.iterdir()}
    assert made == {"1.0", "1.2", "1.3", "1.5", "1.7"}
    assert found[1]["environments"]["made"] == 5


def test_what_is_kept_needs_no_network_and_nothing_moved_is_exit_0(found, bisected):
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    done, document = bisected.run("1.0", "1.3", "--versions", "1.2", **nowhere)
    assert done.returncode == 0, done.stderr
    assert document["verdict"] == "same" and document["environments"]["made"] == 0
    assert "do not differ in a bit" in done.stdout


def test_no_network_is_one_line_and_exit_2(bisected):
    done, document = bisected.run("1.0", "1.7", PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "127.0.0.1:9" in done.stderr
    assert document["verdict"] == "error" and document["error"] in done.stderr


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("1.0", "2.0", ["--bad 2.0", "no such release", "1.7"]),
        ("0.9", "1.7", ["--good 0.9", "no wheel", "1.0"]),
    ],
)
def test_an_end_that_is_not_there_is_named_with_those_near_it(bisected, good, bad, words):
    bisected.index.link("tinyport-0.9.tar.gz")
    done, _ = bisected.run(good, bad)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    for word in words:
        assert word in done.stderr
