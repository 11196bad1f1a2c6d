"""Models part by part: the same numbers as in one piece, in the memory of one part."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import harness
from engine.files import find_model
from harness import memory
from harness.backends import Request, load_backend
from harness.backends._streamed import Shards
from harness.comparison import Comparison
from harness.errors import BadOption
from harness.golden.store import GoldenReference, record
from harness.limits import find_limits
from harness.random_models import config_of, variants, write_model
from harness.sides import load_reference, load_sides

MODEL = Path(__file__).parents[2] / "golden" / "models" / "tiny-llama"
# transformers keeps the base of dynamic scaling from one sequence to the next.
STREAMABLE = [v for v in variants() if v != ("llama", "dynamic")]
FIRST = [*dict(reversed(STREAMABLE)).items()][::3]  # of every third family; the full run takes all
STREAMED = [
    pytest.param(f, v, marks=() if (f, v) in FIRST else pytest.mark.full) for f, v in STREAMABLE
]


def measures(comparison):
    return {
        (m.site, m.mode, m.probe.name): (m.error, m.noise, m.token, m.ties)
        for seen in comparison.observed
        for m in seen.measures
    }


@pytest.mark.parametrize(("family", "variant"), STREAMED)
def test_every_number_is_that_of_the_whole_model(random_model, family, variant):
    request = Request(find_model(random_model(family, variant)), "float32")
    streamed = load_sides(request, "engine", "torch", None, {}, streamed=True)
    streamed.observe_all()
    whole = Comparison(
        request.files, load_reference("torch", request, 1), load_backend("engine", request),
        streamed.probes, find_limits("cpu-x86_64"),
    )  # fmt: skip
    whole.observations()
    assert measures(streamed) == measures(whole) and measures(whole)
    for one, other in zip(streamed.observed, whole.observed, strict=True):
        for logits in ("oracle", "twin", "actual"):
            assert np.array_equal(getattr(one, logits), getattr(other, logits))


@pytest.mark.parametrize("options", [
    {"candidate": "mlx-lm"},
    {"reference": "golden"},
    {"reference": "mlx-lm"},
    {"dtype": "bfloat16", "candidate": "mlx-lm"},
])  # fmt: skip
def test_other_sides_can_be_streamed(options):
    verdict = harness.compare(MODEL, stream=True, **options)
    assert verdict.verdict == "pass", [(c.name, c.reason) for c in verdict.checks]
    answers = {(c.name, c.dtype): c for c in verdict.checks}
    assert answers["weights", "float32"].verdict == "pass"
    for name in ("greedy", "cache", "batch", "repeat", "observer"):
        assert answers[name, "float32"].verdict == "skip"
        assert "streamed" in answers[name, "float32"].reason


@pytest.mark.parametrize("candidate", ["engine", "mlx-lm"])
def test_a_block_that_is_off_is_named(monkeypatch, candidate):
    from harness.backends import _mlx_streamed as streamed

    whole = streamed.StreamedMLX.run

    def run(self, tokens, part, mode, fed, observe):
        def off(site, array):
            observe(site, array * np.float32(1.0001) if site.block == 2 else array)

        whole(self, tokens, part, mode, fed, off)

    monkeypatch.setattr(streamed.StreamedMLX, "run", run)
    verdict = harness.compare(MODEL, candidate, stream=True)
    assert verdict.verdict == "fail" and verdict.first_divergence.block == 2


def test_a_changed_weight_is_named(monkeypatch):
    from harness.backends.engine import EngineBackend

    whole = EngineBackend.weights

    def weights(self):
        found = whole(self)
        return found | {"blocks.1.mlp.down.weight": found["blocks.1.mlp.down.weight"] + 1}

    monkeypatch.setattr(EngineBackend, "weights", weights)
    verdict = harness.compare(MODEL, "engine", stream=True)
    assert verdict.first_divergence.site == "blocks.1.mlp.down.weight"


def test_the_head_and_the_embedding_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr("harness.backends._streamed.AT_ONCE", 100)
    calls = []
    rows = Shards.rows
    monkeypatch.setattr(Shards, "rows", lambda self, *what: calls.append(what) or rows(self, *what))
    assert harness.compare(MODEL, stream=True, kinds=["text"]).verdict == "pass"
    assert max(stop - start for _, start, stop in calls) == 100


# Interrupted


class Stopped(Exception):
    pass


def stopping(at):
    def progress(done, total, what):
        if what.startswith(at):
            raise Stopped

    return progress


def test_an_interrupted_comparison_goes_on_where_it_was(tmp_path, monkeypatch):
    state = tmp_path / "state"
    told = []
    with pytest.raises(Stopped):
        harness.compare(MODEL, resume=state, progress=stopping("block 2"))
    assert state.exists()
    resumed = harness.compare(
        MODEL, resume=state, progress=lambda done, total, what: told.append(what)
    )
    once = harness.compare(MODEL, stream=True)
    streamed = [what.split(",")[0] for what in told if what.startswith(("block ", "embedding"))]
    assert streamed == ["block 2", "block 3"]
    assert [vars(site) for site in resumed.sites] == [vars(site) for site in once.sites]
    assert [c.verdict for c in resumed.checks] == [c.verdict for c in once.checks]


def test_a_moe_goes_on_where_it_was(random_model, tmp_path):
    """Ties between experts, and what enters blocks, come back as they were."""
    model, state = random_model("qwen3_moe", "sparse"), tmp_path / "state"
    with pytest.raises(Stopped):
        harness.compare(model, resume=state, dtype="bfloat16", progress=stopping("block 2, bf"))
    with pytest.raises(Stopped):
        harness.compare(model, resume=state, dtype="bfloat16", progress=stopping("block 3, bf"))
    resumed = harness.compare(model, resume=state, dtype="bfloat16")
    once = harness.compare(model, stream=True, dtype="bfloat16")
    assert [vars(site) for site in resumed.sites] == [vars(site) for site in once.sites]


@pytest.mark.parametrize("spoil", ["other", "cut", "nonsense"])
def test_a_state_that_is_not_ours_is_refused(tmp_path, command, spoil):
    state = tmp_path / "state"
    with pytest.raises(Stopped):
        harness.compare(MODEL, resume=state, progress=stopping("block 2"))
    data = state.read_bytes()
    state.write_bytes({"other": data, "cut": data[:-100], "nonsense": b"nonsense"}[spoil])
    candidate = "mlx-lm" if spoil == "other" else "engine"
    before = state.read_bytes()
    result = command(
        "harness", "compare", "--model", MODEL, "--candidate", candidate, "--resume", state
    )
    line = result.err.splitlines()[-1]
    assert result.status == 2 and "state" in line and state.read_bytes() == before


@pytest.mark.parametrize("side", ["candidate", "reference"])
def test_a_state_of_a_file_that_was_written_anew_is_refused(tmp_path, side):
    """Half the numbers would be those of the old trace."""
    from harness.tracing import write_trace

    trace, state = tmp_path / "trace.safetensors", tmp_path / "state"
    write_trace(str(MODEL), "engine", trace)
    options = {"resume": state, side: f"trace:{trace}"}
    with pytest.raises(Stopped):
        harness.compare(MODEL, progress=stopping("block 2"), **options)
    with pytest.raises(Stopped):  # the control: as it was, it is gone on from
        harness.compare(MODEL, progress=stopping("block 3"), **options)
    write_trace(str(MODEL), "engine", trace)
    with pytest.raises(BadOption, match="another comparison"):
        harness.compare(MODEL, **options)


# Memory


def test_what_is_needed_is_told_first(command):
    result = command("harness", "compare", "--model", MODEL, "--stream", "--kinds", "text")
    assert result.status == 0
    assert "of memory needed" in result.err and "available" in result.err


def test_a_model_that_does_not_fit_is_streamed_by_itself(monkeypatch):
    size = memory.size_of(find_model(MODEL))
    probes = load_sides(
        Request(find_model(MODEL), "float32"), "engine", "torch", None, {}, streamed=True
    ).probes
    least = size.streamed("float32", True, probes)
    monkeypatch.setattr(memory, "BASE", 0)
    whole = size.whole("float32", True)
    assert size.streamed("float32", True, probes) < whole < least
    for free, streams in ((whole + 1, False), (whole - 1, True)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        verdict = harness.compare(MODEL)
        assert any("streamed" in (c.reason or "") for c in verdict.checks) == streams


def test_what_is_served_elsewhere_takes_no_memory_here(monkeypatch, command):
    """A golden and a server need none of the model's weights; PyTorch beside it does."""
    monkeypatch.setattr(memory, "BASE", 0)
    monkeypatch.setattr(memory, "available", lambda: 30_000)
    arguments = ("harness", "compare", "--model", MODEL, "--candidate", "http://127.0.0.1:9")
    golden = command(*arguments, "--reference", "golden")
    assert golden.status == 2 and "no server answers" in golden.err
    live = command(*arguments, "--reference", "torch")
    assert live.status == 2 and "of memory needed" in live.err
    assert "--reference golden takes less" in live.err


@pytest.mark.parametrize("option", ["--stream", "--no-stream", None])
def test_too_little_memory_is_refused_with_the_numbers(monkeypatch, command, option):
    monkeypatch.setattr(memory, "available", lambda: 30_000_000)
    options = [option] if option else []
    result = command("harness", "compare", "--model", MODEL, *options)
    line = result.err.splitlines()[-1]
    assert result.status == 2 and "30 MB available" in line and "memory needed" in line


def test_too_little_disk_is_refused_with_the_numbers(monkeypatch, command, tmp_path):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: usage)
    result = command("harness", "compare", "--model", MODEL, "--resume", tmp_path / "state")
    line = result.err.splitlines()[-1]
    assert result.status == 2 and "of disk" in line and not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", MODEL.parent / "tiny-gpt2"], "engine convert"),
        (["--model", MODEL, "--candidate", "python:math:sqrt"], "cannot be streamed"),
        (["--model", MODEL, "--until-decided"], "whole model"),
        (["--model", MODEL, "--depth", "module"], "whole model"),
        (["--model", MODEL, "--kinds", "texts"], "there are single"),
    ],
)
def test_what_cannot_be_streamed_is_one_line(command, arguments, words):
    result = command("harness", "compare", "--stream", *arguments)
    assert result.status == 2 and words in result.err.splitlines()[-1]


def test_dynamic_scaling_cannot_be_streamed(random_model, command):
    result = command("harness", "compare", "--stream", "--model", random_model("llama", "dynamic"))
    assert result.status == 2 and "dynamic" in result.err.splitlines()[-1]


@pytest.mark.full
@pytest.mark.timeout(300)
def test_memory_does_not_grow_with_depth(tmp_path):
    """The benchmark's own measurement, small: the same peak for a model three times as deep."""
    path = Path(__file__).parents[2] / "benchmarks" / "streaming.py"
    spec = importlib.util.spec_from_file_location("streaming_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    shape = {
        **benchmark.LLAMA_7B,
        "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8,
        "num_key_value_heads": 8, "vocab_size": 4000,
    }  # fmt: skip
    found = []
    for layers in (3, 9):
        folder = benchmark.write_model(tmp_path / str(layers), layers, shape)
        found.append(benchmark.measure(folder, layers, shape))
    shallow, deep = found
    assert (shallow["verdict"], deep["verdict"]) == ("pass", "pass")
    assert (shallow["blocks"], deep["blocks"]) == (3, 9)
    parameters = (tmp_path / "9" / "model-00000.safetensors").stat().st_size // 2
    grown = 6 * parameters * (4 + 4 + 8)  # what six more blocks would take on three sides
    assert deep["peak"] < 1.1 * shallow["peak"] and deep["peak"] - shallow["peak"] < grown / 8


# Goldens of models that do not fit


@pytest.mark.parametrize(
    ("family", "variant"), [("llama", "tied"), ("gemma2", "softcaps"), ("qwen3_moe", "sparse")]
)
def test_a_golden_recorded_in_parts_is_that_of_the_whole(monkeypatch, tmp_path, family, variant):
    model = write_model(tmp_path / "models" / "m", config_of(family, variant))
    files, found = find_model(model), []
    for name, how in (("whole", {"columns": 16}), ("parts", {"stream": True})):
        folder = tmp_path / name
        folder.mkdir()
        record(str(model), "torch", "float32", folder, **how)
        monkeypatch.setattr("harness.golden.manifest.golden_folders", lambda files, at=folder: [at])
        found.append(GoldenReference(files, "float32"))
    whole, in_parts = found
    known = {probe.name: probe for probe in whole.probes}
    for probe in in_parts.probes:
        assert probe == known[probe.name]
        one, other = whole.evidence(probe), in_parts.evidence(probe)
        assert one.noise == other.noise
        for mode, sites in one.expected.items():
            for site, array in sites.items():
                assert np.array_equal(array, other.expected[mode][site])
        assert np.array_equal(one.scores.oracle, other.scores.oracle)
