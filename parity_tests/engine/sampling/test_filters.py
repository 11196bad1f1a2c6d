"""Every order against numpy in float64, and against the code of transformers and mlx-lm.

Compared are the softmax of what is left, so what is kept and how probable it is. Cases where a
threshold is nearer than float32 can hold are left out (`reference.Edge`), as is nothing else.
"""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from engine.sampling import ORDERS, Sampler, Sampling

from . import llama_cpp
from .reference import REFERENCES, Edge, softmax

SMALL = 1e-5  # a probability may be off by so much; a few roundings of logits up to 40


@st.composite
def logits(draw):
    """On a grid, so that ties are common and differences not lost; some are -inf."""
    size = draw(st.integers(1, 40))
    grid = st.integers(-64, 64).map(lambda n: n / 8)
    x = draw(st.lists(grid, min_size=size, max_size=size))
    banned = draw(st.sets(st.integers(0, size - 1), max_size=size - 1) | st.just(set()))
    return np.array([-np.inf if i in banned else value for i, value in enumerate(x)], np.float32)


def wishes(order, **more):
    """Numbers that float32 holds exactly where a tie may hang on it."""
    return st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.25, 0.7, 1.0, 1.5]),
            "top_k": st.integers(0, 12),
            "top_p": st.sampled_from([0.05, 0.3, 0.8, 0.95, 1.0]),
            "min_p": st.sampled_from([0.0, 0.02, 0.3]),
            "typical_p": st.sampled_from([0.2, 0.9, 1.0]),
            "repetition_penalty": st.sampled_from([0.5, 1.0, 1.25, 2.0]),
            "presence_penalty": st.sampled_from([-0.5, 0.0, 0.25]),
            "frequency_penalty": st.sampled_from([0.0, 0.125]),
            "order": st.just(order),
            **more,
        }
    )


@st.composite
def cases(draw, order, **more):
    x = draw(logits())
    tokens = st.lists(st.integers(0, x.size - 1), max_size=90)
    bias = st.dictionaries(st.integers(0, x.size - 1), st.sampled_from([-4.0, 1.5, 8.0]))
    wish = draw(wishes(order, logit_bias=bias, **more))
    return x, wish, draw(tokens), draw(tokens)


def probabilities(x, wish, prompt, answer):
    """What the engine draws from, in float64 from its float32 scores."""
    sampler = Sampler(Sampling(**wish), prompt, x.size)
    for token in answer:
        sampler.took(token)
    scores = sampler.scores(mx.array(x))
    assert scores.dtype == mx.float32
    return softmax(np.array(scores, np.float64))


def assert_same(actual, expected):
    """The same tokens kept, equally probable."""
    assert same(actual, expected), (actual, expected)


def assert_same_but_for_equals(actual, expected, x):
    """The same, or tokens of other ids that were equal: libraries cut where their sort leaves them.

    Two answers that differ in anything else differ in the probabilities, sorted.
    """
    if not same(actual, expected):
        assert len(set(x.tolist())) < x.size
        assert_same(np.sort(actual), np.sort(expected))


def same(actual, expected):
    return np.array_equal(actual > 0, expected > 0) and np.abs(actual - expected).max() < SMALL


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_that_of_numpy(order):
    tried = []

    @given(cases(order))
    @settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
    def check(case):
        x, wish, prompt, answer = case
        try:
            expected = REFERENCES[order](x, Sampling(**wish), prompt, answer)
        except Edge:
            assume(False)
        tried.append(1)
        assert_same(probabilities(*case), softmax(expected))

    check()
    assert len(tried) > 75


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("other", ORDERS)
def test_every_order_is_told_from_the_others(order, other):
    """The control: one reference for another is found out."""
    rng, told = np.random.default_rng(3), 0
    for _ in range(200):
        x = (rng.normal(size=16) * 3).astype(np.float32)
        text = rng.integers(0, 16, 30).tolist()
        wish = {"temperature": 0.7, "top_k": 6, "top_p": 0.9, "min_p": 0.05, "order": order}
        wish |= {"typical_p": 0.9, "repetition_penalty": 1.25}
        try:
            expected = softmax(REFERENCES[other](x, Sampling(**wish), text, text))
        except Edge:
            continue
        actual = probabilities(x, wish, text, text)
        told += np.abs(actual - expected).max() >= SMALL
    assert told == 0 if order == other else told > 20


@pytest.fixture(scope="module")
def torch_processors():
    """`processors(wish)`: what transformers' generate applies, by its own code."""
    import torch
    from transformers import GenerationConfig, GenerationMixin
    from transformers.generation.logits_process import LogitsProcessorList

    config = SimpleNamespace(is_encoder_decoder=False)

    class Model(GenerationMixin):
        def __init__(self):
            self.config = config

    def processed(x, wish, text):
        settings = GenerationConfig(
            do_sample=True,
            temperature=wish["temperature"],
            top_k=wish["top_k"],
            top_p=wish["top_p"],
            min_p=wish["min_p"] or None,
            typical_p=wish["typical_p"],
            repetition_penalty=wish["repetition_penalty"],
            sequence_bias=[[[i], b] for i, b in wish["logit_bias"].items()] or None,
        )
        ids = torch.tensor([text])
        found = Model()._get_logits_processor(settings, len(text), logits_processor=None)
        assert isinstance(found, LogitsProcessorList)
        return found(ids, torch.tensor(x)[None])[0].double().numpy()

    return processed


def test_the_order_of_transformers_is_that_of_its_code(torch_processors):
    off = {"presence_penalty": st.just(0.0), "frequency_penalty": st.just(0.0)}
    tried = []

    @given(cases("transformers", **off))
    @settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
    def check(case):
        x, wish, prompt, answer = case
        assume(prompt)
        try:
            REFERENCES["transformers"](x, Sampling(**wish), prompt, answer)
        except Edge:
            assume(False)
        tried.append(1)
        expected = torch_processors(x, wish, [*prompt, *answer])
        assert_same_but_for_equals(probabilities(*case), softmax(expected), x)

    check()
    assert len(tried) > 75


@pytest.fixture
def mlx_lm_scores(monkeypatch):
    """`scores(x, wish, text)`: what mlx-lm draws from, caught where it draws."""
    from mlx_lm import sample_utils

    caught = []

    def categorical(logits, temp):
        caught.append(logits * (1 / temp))
        return mx.argmax(logits, axis=-1)

    monkeypatch.setattr(sample_utils, "categorical_sampling", categorical)

    def scores(x, wish, text):
        processors = sample_utils.make_logits_processors(
            wish["logit_bias"],
            wish["repetition_penalty"],
            presence_penalty=wish["presence_penalty"],
            frequency_penalty=wish["frequency_penalty"],
        )
        y = mx.array(x)[None]
        for processor in processors:
            y = processor(mx.array(text), y)
        y = y - mx.logsumexp(y, keepdims=True)  # as generate_step does
        top_p = wish["top_p"] if wish["top_p"] < 1 else 0.0
        sample_utils.make_sampler(wish["temperature"], top_p, wish["min_p"], top_k=wish["top_k"])(y)
        return np.array(caught.pop()[0], np.float64)

    return scores


def test_the_order_of_mlx_lm_is_that_of_its_code(mlx_lm_scores):
    tried = []

    @given(cases("mlx-lm", typical_p=st.just(1.0)))
    @settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
    def check(case):
        x, wish, prompt, answer = case
        assume(prompt and wish["top_k"] < x.size)  # mlx-lm refuses a top_k of the vocabulary
        try:
            REFERENCES["mlx-lm"](x, Sampling(**wish), prompt, answer)
        except Edge:
            assume(False)
        tried.append(1)
        expected = softmax(mlx_lm_scores(x, wish, [*prompt, *answer]))
        assert_same_but_for_equals(probabilities(*case), expected, x)

    check()
    assert len(tried) > 75


@pytest.fixture(scope="module")
def llama_cpp_scores():
    """`scores(x, wish, text)`: what llama.cpp's own chain of samplers leaves of logits."""
    return llama_cpp.scores(pytest.importorskip("xllamacpp.xllamacpp").__file__)


def test_the_order_of_llama_cpp_is_that_of_its_code(llama_cpp_scores):
    # No sum of equal parts: whether three fifteenths exceed 0.2 is float32's to say.
    mass = st.sampled_from([0.0503, 0.3071, 0.8013, 0.9507, 1.0])
    tried = []

    @given(cases("llama.cpp", top_p=mass, typical_p=mass))
    @settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
    def check(case):
        x, wish, prompt, answer = case
        # Of -inf its typical_p makes what is no number.
        assume(wish["typical_p"] == 1 or np.isfinite(x).all())
        try:
            REFERENCES["llama.cpp"](x, Sampling(**wish), prompt, answer)
        except Edge:
            assume(False)
        tried.append(1)
        expected = softmax(llama_cpp_scores(x, wish, [*prompt, *answer]))
        assert_same_but_for_equals(probabilities(*case), expected, x)

    check()
    assert len(tried) > 75


@pytest.mark.parametrize("order", ORDERS)
def test_a_sum_that_is_the_mass_exactly(order):
    """Four equals are a quarter each: top_p takes two for a half, typical_p as the library does."""
    two = probabilities(
        np.zeros(4, np.float32), {"top_p": 0.5, "temperature": 1.0, "order": order}, [], []
    )
    kept = {"transformers": [0, 1], "mlx-lm": [0, 1, 2, 3], "llama.cpp": [0, 1]}[order]
    assert np.flatnonzero(two).tolist() == kept
    wish = {"typical_p": 0.5, "temperature": 1.0, "order": order}
    kept = np.flatnonzero(probabilities(np.zeros(4, np.float32), wish, [], [])).tolist()
    assert kept == ([0, 1, 2] if order == "llama.cpp" else [0, 1, 2, 3])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "x",
    [[0.0], [3.0] * 7, [-np.inf, 1.0, -np.inf], [0.0, -np.inf], [1e4, -1e4, 0.0], [-8.0, -8.0]],
)
@pytest.mark.parametrize(
    "wish",
    [
        {"top_k": 1000},
        {"top_k": 1},
        {"top_p": 1e-9},
        {"top_p": 1e-60},
        {"min_p": 1.0},
        {"typical_p": 1e-9},
        {"temperature": 1e-60},
        {"temperature": 1e9},
        {"repetition_penalty": 1e9, "frequency_penalty": 1e9, "presence_penalty": -1e9},
    ],
)
def test_something_is_left_and_nothing_comes_back(order, x, wish):
    x = np.array(x, np.float32)
    p = probabilities(x, {"temperature": 1.0, **wish, "order": order}, [0], [0])
    assert np.isfinite(p).all() and abs(p.sum() - 1) < SMALL
    assert not (p > 0)[np.isinf(x)].any()


@pytest.mark.parametrize("order", ORDERS)
def test_a_tiny_temperature_takes_the_best_and_its_equals(order):
    p = probabilities(
        np.array([1, 3, 3, 2.99], np.float32), {"temperature": 1e-30, "order": order}, [], []
    )
    assert p.tolist() == [0, 0.5, 0.5, 0]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("order", ORDERS)
def test_arithmetic_is_float32_whatever_the_logits_are(order, dtype):
    """And the control: a softmax in the dtype of the logits is seen to be another."""
    x = (mx.random.normal((500,), key=mx.random.key(2)) * 4).astype(dtype)
    wish = Sampling(temperature=0.7, top_p=0.9, min_p=0.001, order=order)
    scores = [Sampler(wish, [1], 500).scores(y) for y in (x, x.astype(mx.float32))]
    assert mx.array_equal(*scores)
    exact = mx.softmax(x.astype(mx.float32), precise=True)
    assert mx.abs(mx.softmax(x).astype(mx.float32) - exact).max().item() > 1e-5
