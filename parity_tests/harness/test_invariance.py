"""Batch and repeat: what must not depend on company or history, and candidates that do."""

from __future__ import annotations

import numpy as np
import pytest

import harness
from harness.backends.engine import EngineBackend
from harness.checks.batch import rows_of
from harness.types import Probe


def answer(verdict, name):
    return next(c for c in verdict.checks if c.name == name)


@pytest.mark.parametrize("candidate", ["engine", "mlx-lm", "torch:sdpa"])
@pytest.mark.parametrize(
    ("family", "variant"), [("llama", "tied"), ("gemma3_text", "local-global")]
)
def test_rows_of_a_batch_are_right_in_every_backend(random_model, family, variant, candidate):
    """mlx-lm's gemma3 has another embedding scale, which shows in its rows as it does alone."""
    verdict = harness.compare(random_model(family, variant), candidate, "torch", checks=["batch"])
    finding = candidate == "mlx-lm" and family == "gemma3_text"
    assert answer(verdict, "batch").verdict == ("fail" if finding else "pass")
    assert len(answer(verdict, "batch").measures) >= 2


def test_padding_that_is_ignored_is_found(monkeypatch, tiny_llama):
    from harness.backends import engine

    whole = engine.make_cache
    monkeypatch.setattr(engine, "make_cache", lambda spec, padding=None: whole(spec))
    verdict = harness.compare(tiny_llama, "engine", "torch", checks=["cache", "batch"])
    assert answer(verdict, "cache").verdict == "pass"
    found = answer(verdict, "batch")
    assert found.verdict == "fail" and "row" in found.divergence.message
    assert "batch" in verdict.diagnosis


def test_rows_that_change_places_are_found(monkeypatch, tiny_llama):
    whole = EngineBackend.batch

    def swapped(self, *given):
        first, second, *rest = whole(self, *given)
        return [np.resize(second, first.shape), np.resize(first, second.shape), *rest]

    monkeypatch.setattr(EngineBackend, "batch", swapped)
    verdict = harness.compare(tiny_llama, "engine", "torch", checks=["batch"])
    assert answer(verdict, "batch").verdict == "fail"


def test_the_longest_row_is_not_the_first():
    def probe(length):
        return Probe(f"p{length}", "random", "", tuple(range(length)))

    chosen = rows_of([probe(n) for n in (1, 40, 8, 9, 40, 17)])
    assert [len(p.tokens) for p in chosen] == [8, 40, 17]
    assert rows_of([probe(1), probe(5)]) == [probe(5)]


@pytest.mark.parametrize("candidate", ["engine", "torch:sdpa"])
def test_rows_are_within_the_length_of_a_dynamic_base(random_model, candidate):
    """Past it transformers has one base for all rows, and the engine refuses."""
    verdict = harness.compare(random_model("llama", "dynamic"), candidate, checks=["batch"])
    assert answer(verdict, "batch").verdict == "pass"


@pytest.mark.parametrize(("family", "variant"), [("gemma2", "softcaps"), ("llama", "dynamic")])
def test_a_batch_that_cannot_be_run_ends_no_comparison(random_model, family, variant):
    """mlx-lm 0.32.2: gemma2 raises for a mask per row, dynamic rotary for an offset per row."""
    verdict = harness.compare(random_model(family, variant), "mlx-lm", checks=["batch", "repeat"])
    found = answer(verdict, "batch")
    assert found.verdict == "skip" and "as one batch: mlx-lm cannot run" in found.reason
    assert answer(verdict, "repeat").verdict == "pass"


@pytest.mark.parametrize(("kind", "size"), [("ArraysCache", (2,)), ("RotatingKVCache", (8, 4))])
def test_a_cache_that_has_no_batches_is_named(monkeypatch, tiny_llama, kind, size):
    """A cache of states, and a window that keeps the first tokens."""
    from mlx_lm.models import cache

    single = getattr(cache, kind)
    monkeypatch.setattr(cache, "make_prompt_cache", lambda model: [single(*size)] * 4)
    found = answer(harness.compare(tiny_llama, "mlx-lm", "torch", checks=["batch"]), "batch")
    assert found.verdict == "skip" and kind in found.reason


@pytest.mark.parametrize("candidate", ["engine", "mlx-lm"])
def test_repeats_are_bit_identical(tiny_llama, candidate):
    verdict = harness.compare(tiny_llama, candidate, "torch", checks=["repeat"])
    assert answer(verdict, "repeat").verdict == "pass"


def test_noise_and_state_that_outlive_a_call_are_found(tiny_llama):
    random, calls, longest = np.random.default_rng(0), [], [0]

    def noisy(tokens):
        return np.zeros((len(tokens), 512), np.float32) + random.standard_normal()

    def counting(tokens):
        """The same answer to the same input, until another one comes between."""
        if calls and calls[-1] != len(tokens):
            calls.append(len(tokens))
        calls[:] = calls or [len(tokens)]
        return np.zeros((len(tokens), 512), np.float32) + len(calls)

    def growing(tokens):
        """As a table that is kept at the size of the longest input."""
        longest[0] = max(longest[0], len(tokens))
        return np.zeros((len(tokens), 512), np.float32) + longest[0]

    for function, words in (
        (noisy, "again"),
        (counting, "after another input"),
        (growing, "after another input"),
    ):
        found = answer(harness.compare(tiny_llama, function, "torch", checks=["repeat"]), "repeat")
        assert found.verdict == "fail" and words in found.divergence.message


def test_a_cache_that_all_calls_share_is_found(monkeypatch, tiny_llama):
    from engine import decoder

    fresh, shared = decoder.make_cache, []

    def kept(spec, padding=None):
        shared[:] = shared or fresh(spec, padding)
        return shared

    monkeypatch.setattr(decoder, "make_cache", kept)
    found = answer(harness.compare(tiny_llama, "engine", "torch", checks=["repeat"]), "repeat")
    assert found.verdict == "fail" and "again" in found.divergence.message
    assert found.measures["changed"] > 0 and found.measures["largest"] > 1e-3


def test_only_what_differs_is_counted(tiny_llama):
    calls = []

    def mostly_nan(tokens):
        """Not finite, which is for other checks to say, but for one logit that changes."""
        calls.append(len(tokens))
        logits = np.full((len(tokens), 512), np.nan, np.float32)
        logits[0, 0] = len(calls)
        return logits

    found = answer(harness.compare(tiny_llama, mostly_nan, "torch", checks=["repeat"]), "repeat")
    assert found.verdict == "fail" and found.measures == {"changed": 1, "largest": 1.0}
