"""Negative controls: one changed constant of one block is found, and the block is named."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

import harness
from engine.layers.rope import Rope
from engine.model import load
from harness.backends import engine as backend

pytestmark = pytest.mark.parity
BLOCK = 2


def epsilon(decoder):
    """Ten times the epsilon: invisible in bfloat16, about 1e-5 of the block's output here."""
    norm = decoder.blocks[BLOCK].attn_norm
    norm._spec = replace(norm._spec, eps=norm._spec.eps * 10)


def rotary_base(decoder):
    attention = decoder.blocks[BLOCK].attn
    attention._rope = Rope(replace(attention._spec.rope, theta=attention._spec.rope.theta * 1.01))


def scale(decoder):
    attention = decoder.blocks[BLOCK].attn
    attention._spec = replace(attention._spec, scale=attention._spec.scale * 1.0001)


def window(decoder):
    attention = decoder.blocks[BLOCK].attn
    attention._spec = replace(attention._spec, window=5)


def one_weight(decoder):
    """One value of one matrix off by 0.05."""
    down = decoder.blocks[BLOCK].mlp.down
    down.weight = down.weight + mx.zeros_like(down.weight).at[3, 5].add(0.05)


@pytest.fixture
def judged(monkeypatch):
    """The verdict on the engine after a change to its decoder."""

    def run(model, change, **options):
        def changed(*args, **kwargs):
            loaded = load(*args, **kwargs)
            change(loaded.decoder)
            return loaded

        monkeypatch.setattr(backend, "load_model", changed)
        return harness.compare(model, "engine", **options)

    return run


@pytest.mark.parametrize("reference", ["torch", "golden"])
@pytest.mark.parametrize("change", [epsilon, rotary_base, scale, window, one_weight])
def test_a_changed_constant_fails_and_names_its_block(judged, tiny_llama, change, reference):
    verdict = judged(tiny_llama, change, reference=reference)
    assert verdict.exit_status == 1
    blocks = next(c for c in verdict.checks if c.name == "blocks")
    assert blocks.verdict == "fail"
    assert blocks.divergence.block == BLOCK
    assert blocks.divergence.site.startswith(f"model.layers.{BLOCK}")
    assert blocks.measures["failed_blocks"][0] == BLOCK
    assert f"block {BLOCK}" in verdict.diagnosis or change is one_weight
    assert verdict.first_divergence.block == BLOCK
    failing = {d.site.block for d in verdict.sites if d.mode == "isolated" and d.verdict == "fail"}
    assert failing == {BLOCK}


def test_the_module_inside_the_block_is_named(judged, tiny_llama):
    verdict = judged(tiny_llama, one_weight, reference="torch")
    names = {c.name: c.divergence for c in verdict.checks if c.divergence}
    assert names["weights"].site == f"blocks.{BLOCK}.mlp.down.weight"
    assert names["blocks"].site == f"model.layers.{BLOCK}.mlp.down_proj"
    assert "engine/layers/mlp.py" in names["blocks"].code


def test_a_constant_of_all_blocks_is_told_from_a_defect_of_one(judged, tiny_llama):
    def everywhere(decoder):
        for block in decoder.blocks:
            block.attn._spec = replace(block.attn._spec, scale=block.attn._spec.scale * 1.01)

    verdict = judged(tiny_llama, everywhere)
    assert verdict.exit_status == 1
    assert "every block" in verdict.diagnosis


def test_a_cache_that_forgets_its_offset_fails_the_cache_check_alone(judged, tiny_llama):
    def forget(decoder):
        attention = decoder.blocks[BLOCK].attn
        whole = attention._rope

        def restart(x, offset, length):
            return whole(x, 0, length)

        attention._rope = restart

    verdict = judged(tiny_llama, forget, checks=["blocks", "logits", "cache"])
    assert [c.name for c in verdict.checks if c.verdict == "fail"] == ["cache"]
    assert "cache" in verdict.diagnosis


def test_a_scaled_embedding_and_a_scaled_head_are_told_apart(judged, tiny_llama):
    def embedding(decoder):
        decoder.spec = replace(decoder.spec, embed_scale=1.001)

    def head(decoder):
        decoder.norm.weight = decoder.norm.weight * 1.001

    assert "embedding" in judged(tiny_llama, embedding, checks=["blocks"]).diagnosis
    verdict = judged(tiny_llama, head, checks=["blocks", "logits"])
    assert [c.name for c in verdict.checks if c.verdict == "fail"] == ["logits"]
    assert "last norm" in verdict.diagnosis


def test_a_shift_of_all_positions_is_no_fault(judged, tiny_llama):
    """Rotary positions are relative: the same shift everywhere changes nothing that matters."""

    def shift(decoder):
        for block in decoder.blocks:
            whole = block.attn._rope
            block.attn._rope = lambda x, offset, length, whole=whole: whole(x, offset + 1, length)

    verdict = judged(tiny_llama, shift)
    assert verdict.verdict == "pass"
