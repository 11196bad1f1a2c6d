"""Generation: the tokens of the plain loop, whatever the chunks; prompts that cannot be."""

from __future__ import annotations

import mlx.core as mx
import pytest

from engine.cache import make_cache
from engine.errors import InvalidPrompt
from engine.generate import Timing, generate, prefill
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
