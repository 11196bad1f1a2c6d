"""The engine over several ranks as a candidate: what is judged is what they compute together."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

import harness
from engine.errors import RankLost
from engine.files import find_model
from harness.backends import Request, _ranked
from harness.backends._ranked import RankedEngine
from harness.backends.engine import EngineBackend
from harness.errors import BadOption

ROOT = Path(__file__).parents[2]
PROGRAM = "parity_tests.harness.ranked_program"
KINDS = ("single", "random")
TOKENS = [(5 * i + 2) % 50 for i in range(13)]


@pytest.fixture
def faulty(monkeypatch):
    """`faulty(name)` -> ranks of which a fault is planted."""

    def plant(fault: str) -> None:
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", paths)
        program = (sys.executable, "-m", PROGRAM, fault)
        monkeypatch.setattr(RankedEngine.__init__, "__defaults__", (program,))

    return plant


def observed(side, **options) -> dict:
    seen = {}
    side.forward(TOKENS, seen.__setitem__, **options)
    return seen


@pytest.fixture(scope="module", params=[("llama", "llama3"), ("qwen2_moe", "plain")])
def sides(request, random_model):
    """A model over two ranks, and whole."""
    files = find_model(random_model(*request.param))
    return RankedEngine(Request(files, "float32", ranks=2)), EngineBackend(files, "float32", "cpu")


def test_every_site_is_whole(sides):
    found, expected = (observed(side, inside=1) for side in sides)
    assert list(found) == list(expected)
    assert len(found) > 15
    for site, value in expected.items():
        assert found[site].shape == value.shape, site
        assert np.abs(found[site] - value).max() <= 2e-5 * np.abs(value).max(), site


def test_what_is_fed_reaches_every_rank(sides):
    """A site that is fed the double of what was there shows in the next as it does in the whole."""
    expected = observed(sides[1], inside=1)
    part = next(site for site in expected if site.part.endswith("q_proj"))
    feed = {part: 2 * expected[part]}
    again, plain = (observed(side, inside=1, feed=feed) for side in sides)
    after = next(site for site in expected if site.part.endswith("o_proj"))
    assert np.abs(plain[after] - expected[after]).max() > 1e-3
    assert np.abs(again[after] - plain[after]).max() <= 2e-5 * np.abs(plain[after]).max()


def test_tokens_and_batches_are_those_of_the_whole(sides):
    split, whole = sides
    assert split.greedy(TOKENS, 6) == whole.greedy(TOKENS, 6)
    for found, expected in zip(*(side.batch([TOKENS, TOKENS[:5]]) for side in sides), strict=True):
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


def test_weights_are_put_together(sides):
    split, whole = sides
    expected, found = whole.weights(), split.weights()
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(np.array(found[name]), np.array(array)), name


def test_the_verdict_is_that_of_the_whole(tiny_llama):
    verdict = harness.compare(tiny_llama, reference="golden", kinds=KINDS, ranks=2)
    assert verdict.verdict == "pass" and verdict.ranks == 2
    asked = {check.name for check in verdict.checks if check.verdict == "pass"}
    assert {"weights", "tokens", "blocks", "logits", "cache", "repeat"} <= asked


@pytest.mark.parametrize(
    ("fault", "check"),
    [("forgotten_sum", "blocks"), ("wrong_slice", "weights"), ("bias_twice", "weights")],
)
def test_a_fault_of_one_rank_is_found(faulty, random_model, fault, check):
    """The negative control: each in the first check that can see it, and in what is computed."""
    faulty(fault)
    verdict = harness.compare(
        random_model("gpt2", "plain"), checks=["weights", "blocks"], kinds=["random"], ranks=2
    )
    failed = {c.name: c.divergence for c in verdict.checks if c.verdict == "fail"}
    assert verdict.exit_status == 1
    assert next(iter(failed)) == check
    assert failed["blocks"].block in (None, 0)


def test_a_packed_model_is_put_together(quantised_model):
    files = find_model(quantised_model("llama", "llama3"))
    split = RankedEngine(Request(files, "float32", ranks=2))
    whole = EngineBackend(files, "float32", "cpu")
    expected, found = whole.weights(), split.weights()
    assert all(np.array_equal(np.array(found[name]), np.array(expected[name])) for name in expected)
    assert np.allclose(split.forward(TOKENS), whole.forward(TOKENS), rtol=0, atol=1e-4)


def test_a_rank_that_ends_is_an_error(tiny_llama):
    split = RankedEngine(Request(find_model(tiny_llama), "float32", ranks=2))
    split._started.processes[1].kill()
    with pytest.raises(RankLost, match=r"rank 1 of 2 has ended \(status -9\)"):
        split.forward(TOKENS)


@pytest.mark.parametrize("candidate", ["mlx-lm", lambda tokens: tokens])
def test_only_the_engine_runs_over_ranks(tiny_llama, candidate):
    with pytest.raises(BadOption, match=r"--ranks 2: .* one process; engine can"):
        harness.compare(tiny_llama, candidate, ranks=2)


def test_a_streamed_model_is_one_process(tiny_llama):
    with pytest.raises(BadOption, match=r"--ranks 2: .* not with --stream"):
        harness.compare(tiny_llama, ranks=2, stream=True)


def test_arrays_arrive_bit_for_bit():
    import mlx.core as mx

    for dtype in (mx.float32, mx.bfloat16, mx.float16, mx.uint32):
        array = mx.arange(7).astype(dtype)
        again = _ranked._unpacked(*_ranked._packed(array))
        assert again.dtype == dtype and mx.array_equal(again, array)
