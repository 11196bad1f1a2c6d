"""The oracle: what lifting the float32 islands of transformers changes, and that it is enough."""

from __future__ import annotations

import numpy as np
import pytest

from engine.files import find_model
from harness.backends import Request
from harness.backends._lift import lifted
from harness.backends.torch import load
from harness.metrics import relative_error

TOKENS = list(range(3, 75))


@pytest.fixture(scope="module")
def twin():
    from pathlib import Path

    model = Path(__file__).parents[2] / "golden" / "models" / "tiny-llama"
    return load(Request(find_model(model), "float32"))


def test_plain_float64_is_as_far_from_the_oracle_as_float32_is(twin):
    """Casting a model to float64 leaves its norms, softmax and angles in float32."""
    import copy

    import torch

    truth = twin.oracle().forward(TOKENS)
    noise = relative_error(twin.forward(TOKENS), truth)
    plain = copy.deepcopy(twin._model).double()
    with torch.inference_mode():
        half_lifted = plain(torch.tensor([TOKENS])).logits[0].numpy()
    error = relative_error(half_lifted, truth)
    assert 1e-8 < error < 1e-5
    assert error > noise / 20  # useless as a truth for a noise of that size


def test_the_oracle_is_float64_through_and_through(twin):
    """A norm of the oracle agrees with numpy's float64 to the last digits, the twin's does not."""
    seen = {}
    oracle = twin.oracle()
    oracle.forward(TOKENS, lambda site, array: seen.setdefault(site.kind, []).append(array))
    x, norm = seen["block"][-1], seen["norm"][0]
    weight = dict(oracle._model.named_parameters())["model.norm.weight"].numpy()
    by_hand = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight
    assert x.dtype == np.float64
    assert relative_error(norm, by_hand) < 1e-15


def test_lifting_ends_with_its_block():
    import torch

    with lifted():
        assert torch.ones(1).float().dtype == torch.float64
        assert torch.ones(1, dtype=torch.float32).dtype == torch.float64
        assert torch.arange(3, dtype=torch.float).dtype == torch.float64
        assert torch.tensor(1.5).dtype == torch.float64
        assert torch.ones(1, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert torch.ones(1).dtype == torch.float32
    assert torch.ones(1).double().float().dtype == torch.float32


def test_rotary_frequencies_are_made_in_float64(twin):
    """They are made at construction, so a model that is cast afterwards keeps float32 ones."""
    buffer = dict(twin.oracle()._model.named_buffers())["model.rotary_emb.inv_freq"]
    own = dict(twin._model.named_buffers())["model.rotary_emb.inv_freq"]
    difference = (buffer - own.double()).abs().max() / buffer.abs().max()
    assert str(buffer.dtype) == "torch.float64" and 0 < difference < 1e-6


def test_isolated_input_replaces_what_enters_each_block(twin):
    """Feeding the model its own activations changes nothing; other ones change every block."""
    seen, fed = [], []
    twin.forward(TOKENS, lambda site, array: seen.append((site, array)))
    feed = {site: array for site, array in seen if site.kind in ("embedding", "block")}
    twin.forward(TOKENS, lambda site, array: fed.append((site, array)), feed=feed)
    for (_, a), (_, b) in zip(seen, fed, strict=True):
        assert np.array_equal(a, b)
    changed = []
    twin.forward(
        TOKENS,
        lambda site, array: changed.append((site, array)),
        feed={site: array + 1 for site, array in feed.items()},
    )
    assert all(
        not np.array_equal(a, b)
        for (site, a), (_, b) in zip(seen, changed, strict=True)
        if site.kind != "embedding"
    )


def test_dynamic_scaling_keeps_nothing_of_an_earlier_sequence(random_model):
    model = load(Request(find_model(random_model("llama", "dynamic")), "float32"))
    middle = [i % 131 for i in range(60)]
    first = model.forward(middle)
    model.forward([i % 131 for i in range(120)])
    assert np.array_equal(model.forward(middle), first)
