"""Rotary periods are those of transformers' own functions, and turn what they should."""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import Config
from engine.errors import UnsupportedArchitecture
from engine.layers.rope import PAIRS, Rope, periods
from engine.spec import RopeSpec

# transformers works in float32, whose exponents near 1 lose a few bits in a power.
CLOSE = 1e-5
THETAS = (500.0, 10000.0, 2e6)
HEADS = (8, 20, 64, 128)


def theirs(head_dim: int, rotary: dict, length: int | None = None, **top: object):
    """(periods, magnitude) of transformers for one `rope_parameters`; `length` is of a sequence."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = SimpleNamespace(
        head_dim=head_dim,
        hidden_size=1,  # asked for and not used
        num_attention_heads=1,
        rope_parameters=rotary,
        standardize_rope_params=lambda: None,
        **{"max_position_embeddings": 2048, **top},
    )
    found, magnitude = ROPE_INIT_FUNCTIONS[rotary["rope_type"]](config, seq_len=length)
    return 1.0 / found.double().numpy(), magnitude


def ours(head_dim: int, rotary: dict, length: int = 1, **top: object):
    raw = {"max_position_embeddings": 2048, "rope_parameters": rotary, **top}
    spec = Config(raw).rope(head_dim, part=1.0)
    return periods(spec, length), spec.magnitude


def agree(head_dim: int, rotary: dict, length: int = 1, **top: object) -> bool:
    """Whether periods and magnitude are theirs; both must be finite numbers."""
    found, magnitude = ours(head_dim, rotary, length, **top)
    expected, expected_magnitude = theirs(head_dim, dict(rotary), length, **top)
    assert found.shape == expected.shape and np.isfinite(found).all()
    near = np.allclose(found, expected, rtol=CLOSE, atol=0)
    return bool(near) and magnitude == pytest.approx(expected_magnitude, rel=1e-9)


grid = {
    "head_dim": st.sampled_from(HEADS),
    "theta": st.sampled_from(THETAS),
    "factor": st.floats(1.0, 64.0),
}
originals = st.sampled_from((64, 333, 4096))


@given(**grid, share=st.sampled_from((0.5, 1.0)))
@settings(deadline=None, max_examples=40)
def test_linear(head_dim, theta, factor, share):
    rotary = {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    assert agree(head_dim, {**rotary, "partial_rotary_factor": share})


@given(**grid, length=st.integers(1, 9000), share=st.sampled_from((0.5, 1.0)))
@settings(deadline=None, max_examples=60)
def test_dynamic(head_dim, theta, factor, length, share):
    """Up to the trained length and beyond it."""
    rotary = {"rope_type": "dynamic", "rope_theta": theta, "factor": factor}
    assert agree(head_dim, {**rotary, "partial_rotary_factor": share}, length)


@given(**grid, original=originals, low=st.floats(0.5, 2.0), width=st.floats(0.5, 8.0))
@settings(deadline=None, max_examples=60)
def test_llama3(head_dim, theta, factor, original, low, width):
    rotary = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        "low_freq_factor": low,
        "high_freq_factor": low + width,
    }
    assert agree(head_dim, rotary)


@given(
    **grid,
    original=originals,
    truncate=st.booleans(),
    bounds=st.none() | st.tuples(st.floats(2.0, 64.0), st.floats(0.25, 2.0)),
    magnitude=st.sampled_from(
        ({}, {"attention_factor": 0.7}, {"mscale": 0.707, "mscale_all_dim": 1.2}, {"mscale": 2.0})
    ),
    share=st.sampled_from((0.5, 1.0)),
)
@settings(deadline=None, max_examples=150)
def test_yarn(head_dim, theta, factor, original, truncate, bounds, magnitude, share):
    rotary = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
        "truncate": truncate,
        "partial_rotary_factor": share,
        **magnitude,
    }
    if bounds:
        rotary |= {"beta_fast": bounds[0], "beta_slow": bounds[1]}
    assert agree(head_dim, rotary)


@given(
    head_dim=st.sampled_from((8, 20, 64)),
    theta=st.sampled_from(THETAS),
    original=originals,
    length=st.integers(-1, 1),
    said=st.sampled_from(({}, {"factor": 3.0}, {"attention_factor": 1.3}, {"factor": 0.5})),
    share=st.sampled_from((0.5, 1.0)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_longrope(head_dim, theta, original, length, said, share, seed):
    """On both sides of the original length, and at it; a magnitude that is said or follows."""
    random, pairs = np.random.default_rng(seed), int(head_dim * share) // 2
    rotary = {
        "rope_type": "longrope",
        "rope_theta": theta,
        "original_max_position_embeddings": original,
        "short_factor": random.uniform(1, 2, pairs).tolist(),
        "long_factor": random.uniform(3, 60, pairs).tolist(),
        "partial_rotary_factor": share,
        **said,
    }
    assert agree(head_dim, rotary, original + length)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn", "longrope"])
def test_a_wrong_factor_is_noticed(kind):
    rotary = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "short_factor": [1.0] * 32,
        "long_factor": [2.0] * 32,
    }
    assert agree(64, rotary, 3000)
    other, _ = ours(64, {**rotary, "factor": 4.001, "long_factor": [2.001] * 32}, 3000)
    expected, _ = theirs(64, rotary, 3000)
    assert not np.allclose(other, expected, rtol=CLOSE, atol=0)


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_each_layer_type_has_its_own(kind):
    """`truncate` within a layer type is passed over by transformers, and so it is here."""
    long = {"rope_type": kind, "rope_theta": 5e5, "factor": 8.0, "truncate": False}
    long["original_max_position_embeddings"] = 333
    local = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    nested = {"full_attention": long, "sliding_attention": local}
    config = Config({"max_position_embeddings": 2048, "rope_parameters": nested})
    for layer_type, rotary in nested.items():
        found = periods(config.rope(64, layer_type=layer_type))
        expected, _ = theirs(64, {**rotary, "truncate": True})
        assert np.allclose(found, expected, rtol=CLOSE, atol=0), layer_type


def test_a_scaling_at_top_level_may_be_of_one_layer_type_alone():
    """`scaled` False leaves a top-level scaling to the other layer type."""
    raw = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6, "local": 1e4}
    config = Config(raw)
    full = config.rope(64, layer_type="full_attention")
    local = config.rope(64, layer_type="sliding_attention", theta_key="local", scaled=False)
    assert (full.type, full.theta, full.factor) == ("linear", 1e6, 8.0)
    assert (local.type, local.theta) == ("default", 1e4)


def turned(spec: RopeSpec, x: np.ndarray, offset: int = 0, length: int = 0) -> np.ndarray:
    y = Rope(spec)(mx.array(x.astype(np.float32)), offset, length or x.shape[-2])
    return np.array(y, dtype=np.float64)


def by_hand(spec: RopeSpec, x: np.ndarray, offset: int, length: int) -> np.ndarray:
    """Each pair as a complex number times e^(i t / period)."""
    dims, half = spec.dims, spec.dims // 2
    at = np.arange(offset, offset + x.shape[-2])[:, None]
    turn = np.exp(1j * at / periods(spec, length)) * spec.magnitude  # (T, dims/2)
    first, second = x[..., :half], x[..., half:dims]
    if spec.pairs != "halves":
        first, second = x[..., 0:dims:2], x[..., 1:dims:2]
    z = (first + 1j * second) * turn
    y = x.copy()
    if spec.pairs == "neighbours":
        y[..., 0:dims:2], y[..., 1:dims:2] = z.real, z.imag
    else:
        y[..., :half], y[..., half:dims] = z.real, z.imag
    return y


def random_heads(width: int = 10, tokens: int = 7) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, 2, tokens, width)).round(3)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("dims", [6, 10])
@pytest.mark.parametrize("magnitude", [1.0, 1.3])
def test_pairs_turn_and_the_rest_stays(pairs, dims, magnitude):
    x = random_heads()
    spec = RopeSpec(dims, 50.0, pairs, magnitude=magnitude)
    assert np.allclose(turned(spec, x, 5), by_hand(spec, x, 5, 12), atol=1e-5)
    other = RopeSpec(dims, 50.0, next(p for p in PAIRS if p != pairs), magnitude=magnitude)
    assert not np.allclose(turned(other, x, 5), by_hand(spec, x, 5, 12), atol=1e-2)
    assert np.array_equal(turned(spec, x, 5)[..., dims:], x.astype(np.float32)[..., dims:])


BY_LENGTH = (
    RopeSpec(10, 50.0, type="dynamic", factor=4.0, original_length=8),
    RopeSpec(
        10,
        50.0,
        type="longrope",
        original_length=8,
        short_factors=(1.0,) * 5,
        long_factors=(2.0, 3.0, 4.0, 5.0, 6.0),
    ),
)


@pytest.mark.parametrize("spec", BY_LENGTH, ids=lambda spec: spec.type)
def test_the_length_of_the_whole_sequence_decides(spec):
    """Not that of what is fed: a chunk of a long prompt is turned as the prompt is."""
    x = random_heads()
    for length in (7, 8, 9, 20):
        assert np.allclose(turned(spec, x, 0, length), by_hand(spec, x, 0, length), atol=1e-5)
    assert np.array_equal(turned(spec, x, 0, 7), turned(spec, x, 0, 8))
    assert not np.allclose(turned(spec, x, 0, 8), turned(spec, x, 0, 9), atol=1e-2)


@pytest.mark.parametrize("spec", BY_LENGTH, ids=lambda spec: spec.type)
def test_rows_of_a_batch_have_periods_of_their_own(spec):
    x, lengths = random_heads(), (8, 9)
    rows = mx.concatenate([mx.array(x)] * 2)
    found = np.array(Rope(spec)(rows, mx.array([0, 3]), lengths))
    for row, (start, length) in enumerate(zip((0, 3), lengths, strict=True)):
        assert np.allclose(found[row], turned(spec, x, start, length)[0], atol=1e-6)
    assert not np.allclose(found[1], turned(spec, x, 3, 8)[0], atol=1e-2)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (RopeSpec(8, 50.0, type="spiral"), "rotary scaling 'spiral': the engine has default"),
        (RopeSpec(8, 50.0, pairs="thirds"), "rotary pairs 'thirds': the engine has halves"),
    ],
)
def test_what_is_not_known_is_refused(spec, words):
    with pytest.raises(UnsupportedArchitecture) as caught:
        Rope(spec)
    assert words in str(caught.value)
