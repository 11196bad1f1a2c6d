"""Generation: the tokens of the plain loop, whatever the chunks; prompts that cannot be."""

from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest

from engine.cache import SPARE, STEP, Cache, make_cache
from engine.constraint import Constraint
from engine.errors import InvalidPrompt, InvalidRequest
from engine.files import find_model
from engine.generate import DecoderFeed, Timing, generate, prefill, steps
from engine.model import load
from engine.sampling import Sampler, Sampling, logprobs
from parity_tests.engine.test_cache import random_decoder

PROMPT = [5, 17, 3, 99, 42, 7, 7, 23, 64, 8, 11]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_greedy_is_the_argmax_of_one_pass(family):
    variant = {"llama": "llama3", "mistral": "window", "gpt2": "plain"}.get(family, "local-global")
    decoder = random_decoder(family, variant)
    taken = list(generate(decoder, PROMPT, 12))
    expected = []
    for _ in range(12):
        expected.append(int(mx.argmax(decoder(mx.array([PROMPT + expected]))[0, -1])))
    assert taken == expected


def test_a_sequence_that_outgrows_the_short_factors_is_fed_again():
    """Each token is the argmax of one pass, whose keys are all of the long factors by then."""
    decoder = random_decoder("phi3", "longrope")
    length = decoder.spec.blocks[0].attention.rope.original_length
    prompt = (PROMPT * length)[: length - 5]
    taken = list(generate(decoder, prompt, 30))
    logits = decoder(mx.array([prompt + taken]))[0]
    short = decoder(mx.array([(prompt + taken)[:length]]))[0]
    best = [int(t) for t in mx.argmax(logits, axis=-1)]
    assert taken[6:] == best[length:-1]
    assert taken[:6] == [int(t) for t in mx.argmax(short, axis=-1)][length - 6 :]


def test_keys_of_the_short_factors_would_show():
    decoder = random_decoder("phi3", "longrope")
    length = decoder.spec.blocks[0].attention.rope.original_length
    tokens = mx.array([(PROMPT * length)[: length + 1]])
    cache = make_cache(decoder.spec)
    decoder(tokens[:, :-1], cache)
    stale, whole = decoder(tokens[:, -1:], cache)[0, -1], decoder(tokens)[0, -1]
    assert mx.abs(stale - whole).max().item() > 1e-2 * mx.abs(whole).max().item()


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9, 100])
def test_prefill_chunks_do_not_change_the_logits(chunk):
    decoder = random_decoder("gemma3_text", "local-global")
    whole = prefill(decoder, PROMPT, make_cache(decoder.spec))
    logits = prefill(decoder, PROMPT, make_cache(decoder.spec), chunk)
    assert mx.abs(whole - logits).max().item() < 1e-4 * mx.abs(whole).max().item()


def test_the_same_run_twice_is_bit_identical():
    decoder = random_decoder("qwen3", "plain")
    first = decoder(mx.array([PROMPT]))
    assert mx.array_equal(first, decoder(mx.array([PROMPT])))
    assert list(generate(decoder, PROMPT, 20)) == list(generate(decoder, PROMPT, 20))


def test_stop_tokens_end_it_and_are_given():
    decoder = random_decoder("llama", "llama3")
    free = list(generate(decoder, PROMPT, 12))
    cut = free.index(free[4])
    assert list(generate(decoder, PROMPT, 12, stop={free[4]})) == free[: cut + 1]


WISHES = [
    Sampling(temperature=0.9, seed=3),
    Sampling(temperature=1.2, top_k=20, top_p=0.9, min_p=0.02, seed=4, order="llama.cpp"),
    Sampling(temperature=0.9, repetition_penalty=1.3, frequency_penalty=0.2, seed=5),
    Sampling(repetition_penalty=1.3, order="mlx-lm"),
    Sampling(logit_bias={7: 3.0, 9: -float("inf")}),
]


@pytest.mark.parametrize("sampling", WISHES, ids=str)
def test_tokens_are_those_of_one_sampler_over_one_pass_each(sampling):
    """Whether the next step is queued before this token is known or not."""
    decoder = random_decoder("llama", "llama3")
    taken = list(generate(decoder, PROMPT, 15, sampling=sampling))
    sampler, expected = Sampler(sampling, PROMPT, decoder.spec.vocab), []
    for _ in range(15):
        token = sampler(decoder(mx.array([PROMPT + expected]))[0, -1]).item()
        sampler.took(token)
        expected.append(token)
    assert taken == expected
    assert taken != list(generate(decoder, PROMPT, 15))


def test_a_drawn_sequence_that_outgrows_the_short_factors_is_fed_again():
    decoder, wish = random_decoder("phi3", "longrope"), Sampling(temperature=1.0, seed=8)
    length = decoder.spec.blocks[0].attention.rope.original_length
    prompt = (PROMPT * length)[: length - 5]
    sampler, expected = Sampler(wish, prompt, decoder.spec.vocab), []
    for _ in range(12):
        expected.append(sampler(decoder(mx.array([prompt + expected]))[0, -1]).item())
    assert list(generate(decoder, prompt, 12, sampling=wish)) == expected


@pytest.mark.parametrize("sampling", [None, WISHES[0], WISHES[2]], ids=str)
def test_log_probabilities_are_the_models_own(sampling):
    decoder = random_decoder("qwen3", "plain")
    found = list(steps(DecoderFeed(decoder), PROMPT, 8, sampling=sampling, logprobs=4))
    tokens = [step.token for step in found]
    assert tokens == list(generate(decoder, PROMPT, 8, sampling=sampling))
    whole = np.array(logprobs(decoder(mx.array([PROMPT + tokens]))[0]))[len(PROMPT) - 1 :]
    for step, expected in zip(found, whole, strict=False):
        assert step.logprob == pytest.approx(expected[step.token], abs=1e-4)
        ids, values = zip(*step.best, strict=True)
        assert list(ids) == np.argsort(-expected)[:4].tolist()
        assert values == pytest.approx(expected[list(ids)], abs=1e-4)
    plain = next(steps(DecoderFeed(decoder), PROMPT, 1))
    assert (plain.logprob, plain.best) == (None, ())
    assert next(steps(DecoderFeed(decoder), PROMPT, 1, logprobs=0)).logprob is not None


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_constraint_is_followed_to_its_end(temperature):
    model = load(find_model("tiny-llama"))
    prompt, vocab = model.tokenizer.prompt("def main("), model.spec.vocab
    wish = Sampling(temperature=temperature, seed=2)
    pattern = r"[a-z]{2,5}(, [a-z]{2,5}){2}"
    for draw in range(4):
        grammar = Constraint.regex(pattern, model.tokenizer, vocab)
        wish = Sampling(temperature=temperature, seed=draw)
        taken = list(
            generate(
                model.decoder,
                prompt,
                40,
                sampling=wish,
                constraint=grammar,
                stop=model.tokenizer.eos_ids,
            )
        )
        text = model.tokenizer.decode(i for i in taken if i not in model.tokenizer.eos_ids)
        assert re.fullmatch(pattern, text)
        free = model.tokenizer.decode(generate(model.decoder, prompt, 40, sampling=wish))
        assert not re.fullmatch(pattern, free)


def test_a_bias_against_all_that_a_constraint_allows_is_one_line():
    model = load(find_model("tiny-llama"))
    (only,) = model.tokenizer.encode("a", special=False)
    grammar = Constraint.regex("a", model.tokenizer, model.spec.vocab)
    wish = Sampling(logit_bias={only: -float("inf")})
    with pytest.raises(InvalidRequest, match="a bias may have banned"):
        list(generate(model.decoder, [0], 5, sampling=wish, constraint=grammar))


def test_learned_positions_end_it():
    decoder = random_decoder("gpt2", "plain")
    rows = decoder.spec.learned_positions
    assert len(list(generate(decoder, [1] * (rows - 3), 50))) == 4


def test_timing_counts_what_was_made():
    timing = Timing()
    tokens = list(generate(random_decoder("llama", "tied"), PROMPT, 6, timing=timing))
    assert (timing.prompt_tokens, timing.tokens) == (len(PROMPT), len(tokens))
    rate = (timing.tokens - 1) / (timing.last - timing.first)
    assert timing.decode_rate == pytest.approx(rate)
    assert Timing(tokens=1).decode_rate is None


@pytest.mark.parametrize(
    ("prompt", "words"),
    [([], "no tokens"), ([3, 131], "token id 131"), ([-1], "token id -1"), ([1] * 300, "300")],
)
def test_impossible_prompts_are_one_line(prompt, words):
    with pytest.raises(InvalidPrompt) as caught:
        next(generate(random_decoder("gpt2", "plain"), prompt, 3))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def bytes_of(decoder, count: int) -> list[tuple[bool, int]]:
    """Of every block after a prompt of so many tokens: whether it has a window, and its cache."""
    caches = make_cache(decoder.spec)
    mx.eval(prefill(decoder, (PROMPT * count)[:count], caches, chunk=600))
    windowed = [block.attention.window is not None for block in decoder.spec.blocks]
    return [(w, cache.nbytes) for w, cache in zip(windowed, caches, strict=True)]


def test_caches_of_windows_are_bounded_however_long_the_prompt_and_its_chunks(monkeypatch):
    decoder = load(find_model("tiny-gemma3")).decoder
    attention = decoder.spec.blocks[0].attention
    a_token = 2 * attention.kv_heads * attention.head_dim * 4
    found = {count: bytes_of(decoder, count) for count in (300, 1207)}
    for count, sizes in found.items():
        assert len({windowed for windowed, _ in sizes}) == 2
        for windowed, size in sizes:
            if windowed:
                assert attention.window is not None
                assert size == a_token * (STEP + SPARE) >= a_token * attention.window
            else:
                assert size >= a_token * count
    monkeypatch.setattr(Cache, "compact", lambda self: None)
    assert all(size > a_token * (STEP + SPARE) for windowed, size in bytes_of(decoder, 1207))
