"""Backends: watching changes nothing, taps of a user's function work, and code is found."""

from __future__ import annotations

import numpy as np
import pytest

import harness
from engine.files import find_model
from engine.model import load
from harness.backends import Request, available, load_backend
from harness.errors import BadCandidate

TOKENS = [0, 5, 9, 33, 120, 7, 7, 81, 301, 44]


@pytest.mark.parametrize("name", ["engine", "mlx-lm", "torch"])
def test_watching_changes_no_bit(name, golden_model):
    backend = load_backend(name, Request(find_model(golden_model), "float32"))
    plain = backend.forward(TOKENS)
    seen = []
    watched = backend.forward(TOKENS, lambda site, array: seen.append(site), inside=1)
    assert np.array_equal(plain, watched)
    assert np.array_equal(plain, backend.forward(TOKENS))
    assert [s.block for s in seen if s.kind == "block"] == list(range(_blocks(seen)))
    assert seen[0].kind == "embedding" and seen[-1].kind == "logits"
    assert {s.block for s in seen if s.kind == "module"} == {1}


@pytest.mark.parametrize("name", ["engine", "mlx-lm"])
def test_sites_inside_a_block_are_the_references(name, golden_model):
    """Every module that transformers and the candidate both have is compared, by its path."""
    files = find_model(golden_model)
    names = {}
    for each in (name, "torch"):
        seen = names[each] = set()
        load_backend(each, Request(files, "float32")).forward(
            TOKENS, lambda site, array, seen=seen: seen.add((site.part, array.shape)), inside=0
        )
    common = names[name] & names["torch"]
    parts = {part.rpartition(".")[2] for part, _ in common}
    assert parts & {"o_proj", "c_proj"} and parts & {"down_proj", "c_fc"}
    assert parts & {"q_proj", "c_attn"} and parts & {"input_layernorm", "ln_1"}
    if name == "engine":
        assert names[name] <= names["torch"]


def test_a_function_with_taps_is_judged_block_by_block(tiny_llama):
    verdict = harness.compare(tiny_llama, tapped(tiny_llama), "torch")
    assert verdict.verdict == "pass", [c.reason for c in verdict.checks]
    assert any(d.mode == "isolated" and d.site.kind == "block" for d in verdict.sites)


def test_a_function_with_taps_and_a_fault_is_localised(tiny_llama):
    def spoil(decoder):
        decoder.blocks[1].mlp_norm.weight = decoder.blocks[1].mlp_norm.weight * 1.0001

    verdict = harness.compare(tiny_llama, tapped(tiny_llama, spoil), "torch")
    assert verdict.exit_status == 1
    assert verdict.first_divergence.block == 1
    assert verdict.first_divergence.site == "model.layers.1.post_attention_layernorm"
    assert "test_backends.py" in verdict.first_divergence.code


def test_a_function_of_the_wrong_shape_is_one_line(tiny_llama):
    with pytest.raises(BadCandidate, match="returned shape"):
        harness.compare(tiny_llama, lambda tokens: np.zeros((1, 3)), "golden", checks=["logits"])


def test_every_file_is_a_backend():
    assert available() == ["engine", "mlx-lm", "python", "server", "torch", "trace"]


def test_the_code_of_a_site_is_named(tiny_llama):
    from harness.types import Site

    files = find_model(tiny_llama)
    for name, expected in (
        ("engine", "engine/layers/attention.py"),
        ("mlx-lm", "mlx_lm/models/llama.py"),
    ):
        backend = load_backend(name, Request(files, "float32"))
        assert expected in backend.locate(Site("module", 0, "self_attn.o_proj"))


def tapped(model, spoil=lambda decoder: None):
    """The engine behind a function that shows its sites by transformers' names."""
    import mlx.core as mx

    loaded = load(model, dtype="float32")
    spoil(loaded.decoder)
    paths = {target: row.source for row in loaded.spec.names for target in row.targets}

    def logits(tokens, tap):
        def show(name, x):
            kind, _, rest = name.partition(".")
            index, _, part = rest.partition(".")
            pattern = "blocks.{i}" + (f".{part}" if part else "") if kind == "blocks" else name
            if name == "head" or pattern not in paths:
                return x
            return tap(paths[pattern].replace("{i}", index), x)

        return loaded.decoder(mx.array([tokens]), tap=show)

    return logits


def _blocks(seen):
    return sum(site.kind == "block" for site in seen)


def test_decoder_layers_are_found_where_each_has_two_attentions():
    import torch
    from transformers import LongcatFlashConfig

    from harness.backends._transformers import decoder_layers
    from harness.errors import ReferenceUnavailable

    def model(layers):
        made = torch.nn.Module()
        made.config = LongcatFlashConfig(num_layers=3)
        made.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(layers))
        return made

    assert model(3).config.num_hidden_layers == 6
    assert decoder_layers(model(3))[0] == "layers"
    with pytest.raises(ReferenceUnavailable, match="no list of 6"):
        decoder_layers(model(4))
