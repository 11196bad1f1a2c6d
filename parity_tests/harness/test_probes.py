"""Which probes a configuration gets: those that cross what it has, wherever it says so."""

from __future__ import annotations

import pytest

from harness.probes import decodable_length, kinds_of

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
PLAIN = {"rope_type": "default", "rope_theta": 5000.0}


def lengths(config):
    kinds = kinds_of(config, rows=131, bos_id=None, encode=None)
    return {kind.name: len(kind.tokens(0)) for kind in kinds}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": YARN},
        {"rope_parameters": YARN},
        {"rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}},
        {"rope_parameters": {"sliding_attention": PLAIN, "full_attention": YARN}},
        {"rope_parameters": {"full_attention": DYNAMIC}, "max_position_embeddings": 64},
    ],
)
def test_a_scaling_gives_a_probe_beyond_its_length_in_every_spelling(config):
    assert lengths(config)["beyond"] == 72
    assert "beyond" not in lengths({"rope_parameters": {"full_attention": PLAIN}})


@pytest.mark.parametrize(("window", "wanted"), [(8, {8, 9, 17}), (0, set()), (None, set())])
def test_a_window_gives_probes_at_its_edges(window, wanted):
    found = lengths({"sliding_window": window})
    assert {found[name] for name in found if name.startswith("window")} == wanted


def test_decoding_ends_where_a_dynamic_base_begins_to_grow():
    length = {"max_position_embeddings": 48}
    assert decodable_length({"rope_scaling": DYNAMIC, **length}) == 48
    assert decodable_length({"rope_parameters": {"full_attention": DYNAMIC}, **length}) == 48
    assert decodable_length({"rope_scaling": YARN, **length}) is None
