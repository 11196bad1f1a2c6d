"""Sub-block sites: every backend tells the same points, and what it is fed is what goes on."""

from __future__ import annotations

import numpy as np
import pytest

from engine.files import find_model
from harness.answers import culprit
from harness.backends import Request, load_backend
from harness.metrics import relative_error
from harness.random_models import variants
from harness.types import CONTEXT, ISOLATED, KEY, QUERY, Site, SiteDiff

TOKENS = [5, 77, 12, 9, 100, 3, 55, 21, 8, 64, 31]
NAMES = ("torch", "engine", "mlx-lm")


def told(model, name, inside=1):
    seen = {}
    backend = load_backend(name, Request(find_model(model), "float32"))
    backend.forward(TOKENS, seen.__setitem__, inside=inside)
    return seen


def parts(seen):
    return {site.part for site in seen if site.kind == "module"}


@pytest.mark.parametrize("name", NAMES)
def test_the_points_of_a_block_are_told_by_every_backend(random_model, name):
    found = parts(told(random_model("qwen3", "plain"), name))
    projections = {f"self_attn.{p}_proj" for p in "qkvo"}
    inner = {f"self_attn.{leaf}" for leaf in (QUERY, KEY, CONTEXT)}
    rest = {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"}
    rest |= {f"mlp.{p}_proj" for p in ("gate", "up", "down")} | {"self_attn", "mlp"}
    assert projections | inner | rest <= found


@pytest.mark.parametrize("name", ["engine", "mlx-lm"])
@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("qwen3", "plain"),
        ("llama", "llama3"),
        ("qwen3_moe", "plain"),
        ("olmoe", "plain"),  # whose mixture is given rows in mlx-lm
        ("olmo2", "plain"),
    ],
)
def test_what_is_told_is_the_same_in_every_backend(random_model, family, variant, name):
    model = random_model(family, variant)
    expected, actual = told(model, "torch"), told(model, name)
    shared = [site for site in expected if site in actual and site.kind != "experts"]
    assert len(shared) > 12
    for site in shared:
        assert relative_error(actual[site], expected[site]) < 1e-4, site


@pytest.mark.parametrize("name", NAMES)
def test_routers_and_their_choice_are_told_of_every_block(random_model, name):
    seen = told(random_model("qwen3_moe", "plain"), name, inside=None)
    reference = told(random_model("qwen3_moe", "plain"), "torch", inside=None)
    chosen = [site for site in reference if site.kind == "experts"]
    assert chosen
    for site in chosen:
        assert np.array_equal(np.sort(seen[site], axis=1), np.sort(reference[site], axis=1))
        assert Site("router", site.block) in seen


def test_what_is_told_is_what_a_module_gave_before_it_is_changed_in_place(random_model):
    """transformers clamps queries, keys and values in the memory that the hooks were shown."""
    model = random_model("olmoe", "clipped")
    expected, actual = told(model, "torch"), told(model, "engine")
    for part in ("q_norm", "k_norm", "v_proj"):
        site = next(s for s in expected if s.part == f"self_attn.{part}")
        assert np.abs(expected[site]).max() > 1.25, "some would be clamped"
        assert relative_error(actual[site], expected[site]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_fed_module_is_what_the_rest_of_the_block_sees(random_model, name):
    """Another value at a point inside attention changes its output, and nothing before it."""
    model = random_model("llama", "tied")
    backend = load_backend(name, Request(find_model(model), "float32"))
    plain, fed = {}, {}
    backend.forward(TOKENS, plain.__setitem__, inside=1)
    for leaf, later in ((QUERY, CONTEXT), (KEY, CONTEXT), (CONTEXT, "o_proj")):
        site = Site("module", 1, f"self_attn.{leaf}")
        fed.clear()
        feed = {site: plain[site] + 1.0}
        backend.forward(TOKENS, fed.__setitem__, feed=feed, inside=1)
        assert np.array_equal(fed[site], plain[site]), "told as computed, not as fed"
        after = Site("module", 1, f"self_attn.{later}")
        before = Site("module", 1, "self_attn.v_proj")
        assert np.array_equal(fed[before], plain[before])
        assert not np.allclose(fed[after], plain[after])


@pytest.mark.parametrize(("family", "variant"), variants())
def test_feeding_a_block_its_own_values_changes_nothing(random_model, family, variant):
    backend = load_backend("engine", Request(find_model(random_model(family, variant)), "float32"))
    plain, fed = {}, {}
    backend.forward(TOKENS, plain.__setitem__, inside=0)
    inner = {s: a for s, a in plain.items() if s.kind in ("embedding", "block", "module")}
    logits = backend.forward(TOKENS, fed.__setitem__, feed=inner, inside=0)
    assert set(fed) == set(plain)
    assert all(np.array_equal(fed[site], plain[site]) for site in plain)
    assert np.isfinite(logits).all()


def test_the_first_module_that_is_off_is_named_unless_another_is_far_worse():
    def diff(part, ratio, verdict="fail"):
        site = Site("module", 0, part, part)
        return SiteDiff(site, ISOLATED, "p", "float32", 1e-6, 1e-7, ratio, 4.0, verdict)

    fine, edge, off, later = (
        diff("a", 1.0, "pass"), diff("b", 4.5), diff("c", 400.0), diff("d", 800.0),
    )  # fmt: skip
    assert culprit([fine]) is None
    assert culprit([fine, edge]) is edge
    assert culprit([fine, edge, off, later]) is off
    assert culprit([diff("e", float("inf")), diff("f", float("nan"))]).site.part == "e"
