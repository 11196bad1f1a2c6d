"""Sketches: errors keep their size, goldens of large models stay small and still name the block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

import harness
from harness.faults import all_faults
from harness.golden.format import pack, sketched
from harness.golden.store import GoldenReference, record
from harness.metrics import kl, relative_error
from harness.scores import coarse, scores_of
from harness.sketch import COLUMNS, Sketch
from harness.traces import as_bytes
from harness.types import ISOLATED, LOGITS, PROPAGATED, Evidence, Probe, Site, TokenFacts

MODEL = Path(__file__).parents[2] / "golden" / "models" / "tiny-llama"


@given(st.integers(0, 9), st.integers(20, 60), st.integers(40, 400))
def test_a_relative_error_keeps_its_size(seed, length, width):
    random = np.random.default_rng(seed)
    expected = random.standard_normal((length, width))
    actual = expected + 1e-6 * random.standard_normal((length, width)) * random.random((length, 1))
    sketch = Sketch(COLUMNS)
    whole = relative_error(actual, expected)
    assert relative_error(sketch(actual), sketch(expected)) == pytest.approx(whole, rel=0.25)


def test_narrow_arrays_stay_as_they_are():
    array = np.ones((3, COLUMNS))
    assert Sketch(COLUMNS)(array) is array


@given(any_array(np.float64, (6, 50), elements=st.floats(-30, 30)), st.integers(0, 9))
def test_coarse_scores_are_probabilities_and_never_exaggerate(oracle, seed):
    """Summing probabilities up can hide a divergence, never make one."""
    random = np.random.default_rng(seed)
    twin = oracle + random.standard_normal(oracle.shape) * 1e-3
    tokens = tuple(int(t) for t in random.integers(0, 50, 6))
    whole = scores_of(oracle, twin)
    found = coarse(whole, tokens)
    assert np.allclose(np.exp(found.oracle).sum(1), 1)
    assert (kl(found.of(twin), found.oracle) <= kl(twin, oracle) + 1e-12).all()
    assert np.array_equal(found.of(twin), found.twin)
    likely = scores_of(oracle, twin).oracle
    z = likely - np.log(np.exp(likely).sum(1, keepdims=True))
    after = [z[t, tokens[t + 1]] for t in range(5)]
    assert np.allclose(found.oracle[np.arange(5), found.following(tokens)], after)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    record(str(MODEL), "torch", "float32", folder, columns=COLUMNS)
    return folder


@pytest.fixture
def against(golden, monkeypatch):
    monkeypatch.setattr("harness.golden.manifest.golden_folders", lambda files: [golden])
    return lambda *sides, **how: harness.compare(MODEL, *sides, reference="golden", **how)


@pytest.mark.parametrize("candidate", ["engine", "mlx-lm"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_right_candidate_passes_against_a_sketch(against, candidate, stream):
    verdict = against(candidate, stream=stream)
    assert verdict.verdict == "pass"
    found = {check.name: check for check in verdict.checks}
    assert {s.mode for s in verdict.sites} == {ISOLATED, PROPAGATED}
    assert found["distribution"].verdict == "pass"
    assert found["head"].verdict == "skip" and "sketch" in found["head"].reason
    if not stream:
        assert found["greedy"].verdict == found["cache"].verdict == "pass"


@pytest.mark.parametrize(
    "name",
    [
        "attention.scale-1e-4",
        "norms.epsilon",
        "mlp.gelu",
        "rotary.interleaved",
        "weights.one-off-down",
    ],
)
def test_a_fault_is_found_through_a_sketch_and_its_block_named(against, monkeypatch, name):
    from harness.backends import engine
    from harness.faults._patient import Patient

    fault = all_faults()[name]
    load = engine.load

    def planted(request):
        backend = load(request)
        fault.inject(Patient(backend, request.files.config), 2)
        return backend

    monkeypatch.setattr(engine, "load", planted)
    verdict = against("engine", checks=["blocks"])
    assert verdict.verdict == "fail" and verdict.first_divergence.block == 2


def test_a_trace_of_the_exported_probes_has_isolated_blocks(against, tmp_path, golden):
    """The inputs of a sketch are seeded, so that a program elsewhere has had the same ones."""
    from harness.tracing import write_probes, write_trace

    probes = write_probes(str(MODEL), tmp_path / "probes.safetensors", "golden")
    trace = write_trace(str(MODEL), "mlx-lm", tmp_path / "trace.safetensors", on=probes)
    verdict = against(f"trace:{trace}")
    assert verdict.verdict == "pass"
    assert {s.mode for s in verdict.sites} == {ISOLATED, PROPAGATED}


def test_what_is_read_back_is_what_was_recorded(against, golden):
    from engine.files import find_model

    found = GoldenReference(find_model(MODEL), "float32")
    for probe in found.probes:
        evidence = found.evidence(probe)
        assert probe.scales is not None and evidence.sketch == Sketch(COLUMNS)
        assert evidence.shape(LOGITS) == (len(probe.tokens), 512)
        assert evidence.logits.shape == (len(probe.tokens), COLUMNS)
        assert all(array.dtype == np.float32 for array in evidence.feed.values())


@pytest.mark.full
def test_a_golden_of_a_7b_model_takes_less_than_5_megabytes():
    """32 blocks 4096 wide and 128,256 tokens, on the probes such a model has."""
    random, blocks, vocabulary = np.random.default_rng(0), 32, 128_256
    sites = [
        Site("embedding", None, "", "model.embed_tokens"),
        *(Site("block", k, "", f"model.layers.{k}") for k in range(blocks)),
        Site("norm", None, "", "model.norm"),
    ]
    found = []
    for name, length in (("single", 1), ("text", 36), ("random", 40), ("greedy", 100)):
        tokens = tuple(int(t) for t in random.integers(0, vocabulary, length))
        probe = Probe(name, name, "", tokens, 36 if name == "greedy" else None, (0,) * (blocks + 2))
        logits = random.standard_normal((length, vocabulary))
        arrays = {site: random.standard_normal((length, 4096)) for site in sites} | {LOGITS: logits}
        noise = dict.fromkeys(arrays, 1.234567890123e-7)
        evidence = Evidence(
            {PROPAGATED: arrays, ISOLATED: arrays}, {}, {PROPAGATED: noise, ISOLATED: noise},
            logits.astype(np.float32),
        )  # fmt: skip
        found.append((probe, sketched(evidence, probe, Sketch(COLUMNS), "float32")))
    facts = TokenFacts({}, 1, (2,), vocabulary - 1, vocabulary)
    packed, metadata = pack(found, facts, 1.4)
    assert len(as_bytes(packed, "harness.golden/2", **metadata)) < 5_000_000
