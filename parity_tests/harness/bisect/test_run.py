"""What a bisection makes of histories: here releases are traces of the engine with a change in
them, so that a history is a table. `test_command.py` runs real environments."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from harness.bisect.environments import CannotRun, Environment
from harness.tracing import write_trace

AS_IT_IS = ("", 1.0)
BLOCK_1 = ("layers.1", 1.01)
BLOCK_2 = ("layers.2", 1.01)
LAST_BIT = ("layers.1", 1.0 + 2.0**-23)
NOT_A_NUMBER = ("logits", float("nan"))


class Releases:
    """`history[version]` is (site, factor), or why it cannot be run, or a list of these by run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.history, self.runs = folder, {}, []
        self.holds: dict[str, dict[str, str]] = {}

    def of(self, version: str) -> Environment:
        return Environment(self.folder, self.holds.get(version, {}), 0)

    def record(self, environment, version, probes, out, inside):
        self.runs.append(version)
        does = self.history[version]
        if isinstance(does, list):
            does = does.pop(0)
        if isinstance(does, str):
            raise CannotRun(does)
        plain = self.folder / f"{Path(probes).stem}-{inside}.safetensors"
        if not plain.exists():
            write_trace("tiny-llama", "engine", plain, on=probes, inside=inside)
        site, factor = does
        with safe_open(plain, "numpy") as file:
            metadata = file.metadata()
        arrays = load_file(plain)
        for key in arrays:
            if site and (key.endswith(site) or f"{site}.mlp." in key):
                arrays[key] = arrays[key] * np.float32(factor)
        save_file(arrays, out, metadata)

    def __call__(self, *history):
        """Versions 1, 2, ... in that order."""
        self.history = {str(i): does for i, does in enumerate(history, 1)}
        return self


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture
def releases(folder, monkeypatch) -> Releases:
    made = Releases(folder)
    monkeypatch.setattr("harness.bisect.run.recorder", lambda task: made.record)
    monkeypatch.setattr("harness.bisect.run.Environments", lambda *known: made)
    return made


@pytest.fixture
def bisect(command, tmp_path):
    """`bisect(releases, ...)` -> (result, document), of a search from the first to the last."""

    def run(releases, *more, good=None, bad=None, reference="golden"):
        out = tmp_path / "found.json"
        versions = sorted(releases.history, key=int)
        result = command(
            *("harness", "bisect", "--model", "tiny-llama", "--package", "tinyport"),
            *("--candidate", "python:a:b", "--versions", ",".join(versions), "--json", out),
            *("--good", good or versions[0], "--bad", bad or versions[-1]),
            *("--reference", reference, "--cache", tmp_path / "cache", *more),
        )
        return result, json.loads(out.read_text())

    return run


def test_nothing_moved(releases, bisect):
    result, found = bisect(releases(*[AS_IT_IS] * 5))
    assert result.status == 0 and found["verdict"] == "same" and found["steps"] == []
    assert "do not differ in a bit" in result.out
    assert releases.runs == ["1", "1", "5"]  # nothing between is looked at


@pytest.mark.parametrize("at", [2, 4, 7])
def test_the_release_is_found_and_the_site(releases, bisect, at):
    history = [AS_IT_IS] * (at - 1) + [BLOCK_1] * (8 - at)
    result, found = bisect(releases(*history))
    assert result.status == 1 and found["verdict"] == "moved"
    (step,) = found["steps"]
    assert (step["before"], step["after"], step["between"]) == (str(at - 1), str(at), [])
    first = step["first"]
    assert first["site"] == "model.layers.1" and first["block"] == 1
    assert first["ratio"] > first["limit"] and first["before"] < first["limit"] < first["after"]
    assert first["difference"] == pytest.approx(0.01, rel=0.01)
    assert first["ratio"] == pytest.approx(first["difference"] / first["noise"])
    assert {s["site"] for s in step["sites"] if s["moved"]} == {"model.layers.1"}
    assert f"MOVED: tinyport {at} moved" in result.out and "block 1" in result.out
    assert len(set(releases.runs)) <= 5
    assert max(len(line.rstrip()) for line in result.out.splitlines()) <= 100


@pytest.mark.parametrize(
    ("old", "new", "direction", "words"),
    [
        (AS_IT_IS, BLOCK_1, "worse", "for the worse"),
        (BLOCK_1, AS_IT_IS, "better", "for the better"),
        (BLOCK_1, BLOCK_2, "off before and after", "neither before nor after"),
    ],
)
def test_the_oracle_says_whether_it_is_for_the_better(releases, bisect, old, new, direction, words):
    result, found = bisect(releases(old, new))
    assert result.status == 1
    assert found["steps"][0]["direction"] == direction and words in result.out


def test_a_bit_is_no_move_unless_bits_are_asked_for(releases, bisect):
    history = AS_IT_IS, AS_IT_IS, LAST_BIT, LAST_BIT
    result, found = bisect(releases(*history))
    assert result.status == 0 and "--bits" in result.out
    assert found["releases"][-1]["other_bits"] > 0
    result, found = bisect(releases(*history), "--bits")
    assert result.status == 1 and found["steps"][0]["after"] == "3"
    assert found["steps"][0]["first"]["site"] == "model.layers.1"
    assert found["steps"][0]["direction"] == "right both times" and "neither is wrong" in result.out


def test_what_cannot_be_run_is_passed_over(releases, bisect):
    crash = "its process ended with -11"
    result, found = bisect(releases(AS_IT_IS, AS_IT_IS, AS_IT_IS, crash, BLOCK_1, BLOCK_1, BLOCK_1))
    assert result.status == 3 and found["verdict"] == "inconclusive"
    assert found["steps"][0]["before"] == "3" and found["steps"][0]["between"] == ["4"]
    assert crash in result.out and "could not be run: 4" in result.out
    result, found = bisect(
        releases(AS_IT_IS, AS_IT_IS, AS_IT_IS, crash, AS_IT_IS, BLOCK_1, BLOCK_1)
    )
    assert result.status == 1 and found["steps"][0]["after"] == "6"


def test_nothing_between_can_be_run(releases, bisect):
    result, found = bisect(releases(AS_IT_IS, "no", "no", BLOCK_1))
    assert result.status == 3 and found["steps"][0]["between"] == ["2", "3"]
    assert "INCONCLUSIVE: tinyport 4 or one before it" in result.out


@pytest.mark.parametrize("end", [0, 2])
def test_an_end_that_cannot_be_run_is_exit_2(releases, bisect, end):
    history: list = [AS_IT_IS] * 3
    history[end] = "AttributeError: no relu2"
    result, found = bisect(releases(*history))
    assert result.status == 2 and len(result.err.splitlines()) == 1
    assert f"tinyport {end + 1}, an end" in result.err and "no relu2" in result.err
    assert found["verdict"] == "error" and found["error"] in result.err


def test_ends_may_be_given_the_other_way_round(releases, bisect):
    result, found = bisect(releases(BLOCK_1, BLOCK_1, AS_IT_IS, AS_IT_IS), good="4", bad="1")
    assert result.status == 1 and found["swapped"] and "--good is the newer" in result.out
    assert found["steps"][0]["after"] == "3" and found["steps"][0]["direction"] == "better"


def test_a_later_change_is_told_and_every_shows_all(releases, bisect):
    history = AS_IT_IS, AS_IT_IS, BLOCK_1, BLOCK_1, BLOCK_1, BLOCK_2
    result, found = bisect(releases(*history))
    assert result.status == 1 and found["steps"][0]["after"] == "3" and found["further"]
    assert "again later" in result.out and "--good 3" in result.out
    result, found = bisect(releases(*history), "--every")
    assert [step["after"] for step in found["steps"]] == ["3", "6"]
    assert found["steps"][1]["first"]["site"] == "model.layers.1"
    assert [entry["against"] for entry in found["releases"]] == [None, *"12345"]
    assert "2 releases of tinyport moved" in result.out


def test_every_sees_what_was_taken_back(releases, bisect):
    history = AS_IT_IS, BLOCK_1, "crash", AS_IT_IS
    assert bisect(releases(*history))[0].status == 0
    result, found = bisect(releases(*history), "--every")
    assert [step["direction"] for step in found["steps"]] == ["worse", "better"]
    assert result.status == 3, "the release that could not be run may be the better one"


def test_differences_that_only_together_are_beyond_a_limit(releases, bisect):
    history = [("layers.1", 1 + i * 4e-7) for i in range(6)]
    result, found = bisect(releases(*history))
    (step,) = found["steps"]
    assert result.status == 1 and step["since"] == "1" and step["before"] != "1"
    assert "no release did so alone" in result.out
    _, again = bisect(releases(*history), "--every")
    assert [(s["after"], s["since"]) for s in again["steps"]] == [(step["after"], "1")]


def test_a_release_that_does_not_repeat_itself_cannot_be_searched(releases, bisect):
    result, found = bisect(releases([AS_IT_IS, BLOCK_1], BLOCK_1))
    assert result.status == 3 and "does not repeat itself" in found["unsteady"]
    assert "INCONCLUSIVE" in result.out and found["steps"] == []
    result, found = bisect(releases([AS_IT_IS, LAST_BIT], AS_IT_IS))
    assert result.status == 0
    result, found = bisect(releases([AS_IT_IS, LAST_BIT], AS_IT_IS), "--bits")
    assert result.status == 3


def test_what_is_not_finite_has_moved(releases, bisect):
    result, found = bisect(releases(AS_IT_IS, NOT_A_NUMBER, NOT_A_NUMBER))
    assert result.status == 1 and found["steps"][0]["after"] == "2"
    assert found["steps"][0]["first"]["site"] == "lm_head"
    assert found["steps"][0]["direction"] == "worse"
    assert bisect(releases(NOT_A_NUMBER, NOT_A_NUMBER))[0].status == 0


def test_other_packages_that_came_with_it_are_told(releases, bisect):
    releases.holds = {"2": {"tinyport": "2", "numbers": "9"}, "1": {"tinyport": "1"}}
    result, found = bisect(releases(AS_IT_IS, BLOCK_1))
    assert found["steps"][0]["brought"] == {"numbers": [None, "9"]}
    assert "came with it: numbers none -> 9" in result.out


# Loads PyTorch: the reference has to be run inside a block.
def test_the_module_inside_the_block_is_named(releases, bisect):
    result, found = bisect(releases(AS_IT_IS, BLOCK_1), reference="torch")
    first, module = found["steps"][0]["first"], found["steps"][0]["module"]
    assert first["mode"] == "isolated" and first["site"] == "model.layers.1"
    assert module["block"] == 1 and module["site"].startswith("model.layers.1.mlp.")
    assert f"first in it: {module['site']}" in result.out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--good", "x"), ["--good", "'x'"]),
        (("--good", "3"), ["--good 3", "--bad 3"]),
        (("--versions", "1,7"), ["--versions 7", "between"]),
        (("--versions", "1,y"), ["--versions", "'y'"]),
        (("--candidate", "engine"), ["tinyport", "python:"]),
        (("--package", "mlx-lm", "--candidate", "engine"), ["engine", "mlx-lm"]),
        (("--json", "/no/such/file.json"), ["--json", "/no/such"]),
        (("--model", "nowhere"), ["'nowhere'"]),
        (("--reference", "gold"), ["'gold'", "golden"]),
        (("--dtype", "float64"), ["'float64'"]),
    ],
)
def test_bad_options_are_one_line_and_exit_2(releases, command, tmp_path, more, words):
    releases(AS_IT_IS, AS_IT_IS, AS_IT_IS)
    options = {"--model": "tiny-llama", "--package": "tinyport", "--candidate": "python:a:b"}
    options |= {"--good": "1", "--bad": "3", "--versions": "2", "--reference": "golden"}
    options |= {"--cache": tmp_path} | dict(zip(more[::2], more[1::2], strict=True))
    result = command("harness", "bisect", *(part for pair in options.items() for part in pair))
    assert result.status == 2 and len(result.err.splitlines()) == 1, result.err
    for word in words:
        assert word in result.err
