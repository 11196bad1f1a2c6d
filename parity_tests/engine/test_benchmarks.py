"""The benchmarks of long contexts and of loading, on models small enough to be quick."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from engine.model import load

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """`benchmark(name)`: the module benchmarks/NAME.py."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_bytes_and_time_against_the_length_of_the_context(benchmark, random_model, tmp_path):
    context = benchmark("context")
    model = load(random_model("gemma3_text", "local-global", head_dim=32))
    chosen = context.variants("small", model, [8, 4])
    assert [variant.name for variant in chosen] == ["small", "small, 8 bits", "small, 4 bits"]
    found = context.measure(chosen, [300, 900], 2, 1)
    for figures in found.values():
        short, long = figures
        assert short.cache < long.cache < 3 * short.cache, "windows do not grow"
        assert short.median > 0 and long.peak >= long.cache
    plain, eight, four = (figures[1].cache for figures in found.values())
    assert plain > 2 * eight > 2 * four
    context.plot(found, tmp_path / "plot.svg", "small")
    assert "tokens of context" in (tmp_path / "plot.svg").read_text()


def test_heads_that_are_no_groups_run_plain(benchmark, tiny_llama, capsys):
    assert len(benchmark("context").variants("tiny", load(tiny_llama), [8])) == 1
    assert "24 wide" in capsys.readouterr().out


@pytest.mark.parametrize("shards", [1, 3])
def test_what_is_written_is_loaded_and_decodes(benchmark, monkeypatch, tmp_path, shards, capsys):
    loading = benchmark("loading")
    shape = {"WIDTH": 64, "INNER": 128, "HEADS": 4, "KV_HEADS": 2, "VOCAB": 80}
    for name, value in shape.items():
        monkeypatch.setattr(loading, name, value)
    size = loading.write_model(tmp_path, 200_000, shards)
    assert 150_000 < size < 250_000 and len(list(tmp_path.glob("*.safetensors"))) == shards
    taken = {what: [loading.turn(what, tmp_path)] for what in loading.TURNS}
    assert taken["bytes"][0]["peak"] == size
    assert taken["load"][0]["seconds"] > 0 and taken["load"][0]["peak"] > 0.9 * size
    loading.report("small", size, taken)
    assert "to fuse and compile" in capsys.readouterr().out
