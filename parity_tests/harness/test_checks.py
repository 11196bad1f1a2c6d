"""Checks through `harness.compare`, each beside a candidate that it must not let pass."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import harness
from engine.model import load
from harness.backends import engine as backend
from harness.backends.engine import EngineBackend


def answer(verdict, name, dtype="float32"):
    return next(c for c in verdict.checks if c.name == name and c.dtype == dtype)


@pytest.fixture
def changed(monkeypatch):
    """Compare the engine after `change(decoder)`."""

    def run(model, change, **options):
        def loader(*args, **kwargs):
            loaded = load(*args, **kwargs)
            change(loaded.decoder)
            return loaded

        monkeypatch.setattr(backend, "load_model", loader)
        return harness.compare(model, "engine", "torch", **options)

    return run


def test_one_wrong_row_of_the_head_is_found_by_its_column(changed, tiny_llama):
    """A row a little off moves no pooled measure; its column is named."""

    def row(decoder):
        head = decoder.head
        head.weight = head.weight * mx.ones_like(head.weight).at[77].add(5e-6)

    verdict = changed(tiny_llama, row, checks=["blocks", "logits", "head"])
    assert answer(verdict, "blocks").verdict == answer(verdict, "logits").verdict == "pass"
    head = answer(verdict, "head")
    assert head.verdict == "fail"
    assert head.measures["worst_column"] == 77 and head.measures["wrong_columns"] == 1
    assert "column 77" in head.divergence.message
    assert "logits are not" in verdict.diagnosis


def test_a_distribution_that_is_off_fails_with_its_size(changed, tiny_llama):
    def hotter(decoder):
        decoder.norm.weight = decoder.norm.weight * 1.01

    verdict = changed(tiny_llama, hotter, checks=["distribution"])
    found = answer(verdict, "distribution")
    assert found.verdict == "fail" and found.divergence.ratio > found.divergence.limit
    clean = answer(changed(tiny_llama, lambda _: None, checks=["distribution"]), "distribution")
    assert clean.verdict == "pass"
    assert clean.measures["kl"]["mean"] < 1e-9 < found.measures["kl"]["mean"]
    assert clean.measures["prompts"] > 5 and clean.measures["kl"]["standard_error"] > 0


def test_float32_behind_a_bfloat16_label_is_an_error(monkeypatch, tiny_llama):
    """Rounded weights, float32 arithmetic: errors far below bfloat16's, and no pass."""

    def unrounded(*args, dtype, **kwargs):
        loaded = load(*args, dtype=dtype, **kwargs)
        decoder = loaded.decoder
        decoder.set_dtype(mx.float32)
        return loaded

    monkeypatch.setattr(backend, "load_model", unrounded)
    verdict = harness.compare(tiny_llama, "engine", "torch", "bfloat16", ["engagement", "blocks"])
    found = answer(verdict, "engagement", "bfloat16")
    assert found.verdict == "error" and found.measures["mean_ratio"] < found.measures["limit"]
    assert verdict.exit_status == 2
    assert "higher precision" in found.reason


def test_at_its_own_dtype_a_candidate_is_engaged(tiny_llama):
    verdict = harness.compare(tiny_llama, "engine", "torch", "bfloat16", ["engagement"])
    found = answer(verdict, "engagement", "bfloat16")
    assert found.verdict == "pass" and 0.5 < found.measures["mean_ratio"] < 2


def test_a_pass_that_changes_when_nobody_watches_is_found(monkeypatch, tiny_llama):
    """What serves users is the bare pass: it is the one judged, where the two differ."""
    whole = EngineBackend.forward

    def bare(self, tokens, observe=None, **options):
        logits = whole(self, tokens, observe, **options)
        return logits if observe is not None else logits * 1.001

    monkeypatch.setattr(EngineBackend, "forward", bare)
    verdict = harness.compare(tiny_llama, "engine", "torch", checks=["blocks", "observer"])
    assert answer(verdict, "blocks").verdict == "pass"
    found = answer(verdict, "observer")
    assert found.verdict == "fail" and found.measures["changed"] > 0


def test_rounding_that_watching_changes_is_measured_and_passes(monkeypatch, tiny_llama):
    whole = EngineBackend.forward

    def bare(self, tokens, observe=None, **options):
        logits = whole(self, tokens, observe, **options)
        return logits if observe is not None else np.nextafter(logits, np.float32(np.inf))

    monkeypatch.setattr(EngineBackend, "forward", bare)
    verdict = harness.compare(tiny_llama, "engine", "torch", checks=["observer"])
    found = answer(verdict, "observer")
    assert found.verdict == "pass" and found.measures["changed"] > 100
    assert "watching changes" in found.reason


@pytest.mark.parametrize("wanted", [False, True])
def test_what_is_open_says_how_many_prompts_would_decide_and_runs_them(
    changed, tiny_llama, wanted, monkeypatch
):
    """So near to a limit that three prompts leave it open; more of them close it."""
    import harness.sides
    from harness.limits import Limits, Row

    rows = {(m, "float32", "random"): Row(5.0, 0.5, 300, 2.5) for m in ("isolated", "propagated")}
    rows |= {(m, "float32", k): Row(1e6, 0.1, 300, 5e5) for m, _, _ in list(rows) for k in "x"}
    table = Limits("cpu-test", "", rows, {})
    monkeypatch.setattr(harness.sides, "find_limits", lambda device_class: table)

    def off(decoder):
        norm = decoder.blocks[1].mlp_norm
        norm.weight = norm.weight * (1 + 1.0e-6)

    verdict = changed(tiny_llama, off, checks=["blocks"], until_decided=wanted)
    blocks = answer(verdict, "blocks")
    prompts = {d.probe for d in verdict.sites if d.probe.startswith("random")}
    if wanted:
        assert blocks.verdict in ("pass", "fail")
        assert len(prompts) > 3
    else:
        assert blocks.verdict == "inconclusive" and verdict.exit_status == 3
        assert verdict.prompts_needed and "more prompt" in blocks.reason
        assert len(prompts) == 3


def test_depth_module_measures_inside_blocks_that_hold(changed, tiny_llama):
    """Both matrices of an MLP scaled against each other: the block is right, its inside is not."""

    def twist(decoder):
        mlp = decoder.blocks[1].mlp
        mlp.up.weight, mlp.up.bias = mlp.up.weight * 2, mlp.up.bias * 2
        mlp.down.weight = mlp.down.weight / 2

    verdict = changed(tiny_llama, twist, checks=["blocks"], depth="module")
    blocks = answer(verdict, "blocks")
    assert blocks.verdict == "pass"
    assert "model.layers.1.mlp.up_proj" in blocks.measures["modules_off"]
    assert "off inside blocks that hold" in blocks.reason
    clean = answer(changed(tiny_llama, lambda _: None, checks=["blocks"], depth="module"), "blocks")
    assert clean.measures["modules_off"] == []


def test_an_unknown_depth_is_one_line(command, tiny_llama):
    result = command("harness", "compare", "--model", tiny_llama, "--depth", "atom")
    assert result.status == 2 and "there are block, module" in result.err
