"""The compiled decode step: the numbers of the decoder it was made of, and when there is none."""

from __future__ import annotations

import threading

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from engine.cache import Apart, make_cache
from engine.fused import FusedAttention, FusedMLP, joined
from engine.layers import feeding
from engine.layers.packed import PackedLinear
from engine.step import Steps
from engine.weights.quantised import Packing
from harness.random_models import variants
from parity_tests.engine import test_cache

PROMPT = [5, 17, 3, 99, 42, 7, 7, 23, 64, 8, 11]
FIRST = dict(reversed(variants()))  # of every family


def random_decoder(family, variant, **more):
    """A decoder whose steps are compiled on any device."""
    decoder = test_cache.random_decoder(family, variant, **more)
    decoder._steps = Steps(compiled=True)
    return decoder


class NoSteps(Steps):
    """In place of a decoder's steps: it has none."""

    def __call__(self, *arguments) -> None:
        return None


def decoded(decoder, tokens=PROMPT, taps=None, prompt=4) -> mx.array:
    """Logits (T, V) of a prompt and of the tokens after it, fed one by one."""
    cache = make_cache(decoder.spec)
    logits = [decoder(mx.array([tokens[:prompt]]), cache, length=len(tokens))]
    for i, token in enumerate(tokens[prompt:]):
        more = {} if taps is None else {"tap": taps(i)}
        logits.append(decoder(mx.array([[token]]), cache, length=len(tokens), **more))
    return mx.concatenate(logits, axis=1)[0]


def plainly(decoder, *arguments) -> mx.array:
    """The same without compiled steps."""
    steps, decoder._steps = decoder._steps, NoSteps()
    try:
        return decoded(decoder, *arguments)
    finally:
        decoder._steps = steps


def off_by(actual: mx.array, expected: mx.array) -> float:
    return float(mx.abs(actual - expected).max() / mx.abs(expected).max())


@pytest.mark.parametrize("family", sorted(FIRST))
def test_the_step_gives_what_the_decoder_gives(family):
    decoder = test_cache.random_decoder(family, FIRST[family])
    expected = plainly(decoder)
    assert off_by(decoded(decoder), expected) < 1e-5
    assert decoder._steps._shell is not None, "there was no step"


@pytest.mark.parametrize(("family", "variant"), [("llama", "llama3"), ("gpt2", "plain")])
def test_compiled_or_not_it_is_the_same(family, variant):
    decoder = test_cache.random_decoder(family, variant)
    bare = decoded(decoder)
    decoder._steps = Steps(compiled=True)
    assert off_by(decoded(decoder), bare) < 1e-6


def test_a_step_of_another_model_would_show():
    decoder, other = random_decoder("llama", "llama3"), random_decoder("llama", "llama3", seed=2)
    decoded(other)
    decoded(decoder)
    expected = plainly(decoder)
    decoder._steps._shell, decoder._steps._made = other._steps._shell, other._steps._made
    decoder._steps.doubt = lambda: None
    assert off_by(decoded(decoder), expected) > 0.1


def test_the_parts_of_a_fused_matrix_are_slices_of_it():
    decoder = random_decoder("llama", "llama3")
    before = {name: mx.array(a) for name, a in decoder.blocks[0].attn.q.items()}
    decoded(decoder)
    attention = decoder._steps._shell.blocks[0].attn
    assert isinstance(attention, FusedAttention)
    assert isinstance(decoder._steps._shell.blocks[0].mlp, FusedMLP)
    for name, array in decoder.blocks[0].attn.q.items():
        assert mx.array_equal(array, before[name])
    held = sum(a.nbytes for _, a in tree_flatten(decoder.parameters()))
    del before
    mx.clear_cache()
    grown = mx.get_active_memory()
    del attention
    decoder._steps = Steps()
    assert grown - mx.get_active_memory() < held / 10, "the fused matrices were copies"


def test_only_layers_that_are_alike_are_joined():
    plain = [nn.Linear(64, 32, bias=False), nn.Linear(64, 16, bias=False)]
    assert joined(plain).weight.shape == (48, 64)
    assert joined([nn.Linear(64, 32), nn.Linear(64, 16, bias=False)]) is None
    packed = [PackedLinear((32, 64), Packing(64, 4)) for _ in range(2)]
    assert joined(packed).weight.shape == (64, 8)
    other = PackedLinear((32, 64), Packing(64, 8))
    assert joined([packed[0], other]) is None
    assert joined([packed[0], nn.Linear(64, 32, bias=False)]) is None


def test_what_is_watched_is_what_runs():
    """Sites are told in the order of the plain pass, with its values, and change nothing."""
    decoder = random_decoder("gemma3_text", "local-global")
    seen: list[dict] = [{}, {}]

    def into(found):
        return lambda i: lambda name, value: found.setdefault((i, name), value)

    expected = plainly(decoder, PROMPT, into(seen[0]))
    unwatched = decoded(decoder)
    watched = decoded(decoder, PROMPT, into(seen[1]))
    assert mx.array_equal(unwatched, watched)
    assert list(seen[0]) == list(seen[1])
    for place, value in seen[0].items():
        assert off_by(seen[1][place], value) < 1e-5, place
    assert off_by(watched, expected) < 1e-5


def test_a_tap_that_feeds_is_obeyed_and_one_that_hides_it_refused():
    decoder = random_decoder("llama", "llama3")

    def zero(i):
        def tap(name, value):
            return mx.zeros_like(value) if name == "blocks.1.mlp" else value

        return tap

    expected = plainly(decoder, PROMPT, zero)
    assert off_by(decoded(decoder, PROMPT, lambda i: feeding(zero(i))), expected) < 1e-5
    assert off_by(decoded(decoder), expected) > 1e-3
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp: a tap that feeds"):
        decoded(decoder, PROMPT, zero)


def test_another_weight_is_seen_by_the_next_sequence():
    decoder = random_decoder("llama", "llama3")
    before = decoded(decoder)
    decoder.blocks[1].attn.v.weight = decoder.blocks[1].attn.v.weight * 2
    after = decoded(decoder)
    assert off_by(after, before) > 1e-3
    assert off_by(after, plainly(decoder)) < 1e-5


def test_a_module_of_somebody_else_is_called_for_every_token():
    decoder = random_decoder("llama", "llama3")
    decoded(decoder)
    mlp, calls = decoder.blocks[0].mlp, []

    class Counted(type(mlp)):
        def __call__(self, x, tap):
            calls.append(x.shape)
            return super().__call__(x, tap)

    mlp.__class__ = Counted
    decoded(decoder)
    assert calls == [(1, 4, decoder.spec.width)] + [(1, 1, decoder.spec.width)] * 7


@pytest.mark.parametrize("pads", [[0, 0], [0, 5, 2]])
def test_rows_of_a_batch(pads):
    decoder = random_decoder("mistral", "window")
    tokens = mx.array([[3 + row, *PROMPT] for row in range(len(pads))])

    def run(steps):
        decoder._steps = steps
        cache = make_cache(decoder.spec, pads)
        decoder(tokens[:, :6], cache)
        rest = [decoder(tokens[:, i : i + 1], cache) for i in range(6, 12)]
        return mx.concatenate(rest, axis=1)

    assert off_by(run(Steps(compiled=True)), run(NoSteps())) < 1e-5


def test_sequences_apart():
    decoder = random_decoder("qwen3", "plain")

    def run(steps):
        decoder._steps = steps
        alone = []
        for count in (3, 7):
            cache = make_cache(decoder.spec)
            decoder(mx.array([PROMPT[:count]]), cache)
            alone.append(cache)
        layers = [Apart(rows, 3) for rows in zip(*alone, strict=True)]
        return decoder(mx.array([[4], [5], [0]]), layers)[:2]

    assert off_by(run(Steps(compiled=True)), run(NoSteps())) < 1e-5


def test_a_rotation_that_changes_with_every_token_is_not_compiled():
    decoder = random_decoder("llama", "dynamic")
    length = decoder.spec.stretched[0].original_length
    tokens = (PROMPT * length)[: length + 4]
    cache = make_cache(decoder.spec)
    decoder(mx.array([tokens[:-6]]), cache)
    stepped = [decoder(mx.array([[token]]), cache) for token in tokens[-6:]]
    decoder._steps, cache = NoSteps(), make_cache(decoder.spec)
    decoder(mx.array([tokens[:-6]]), cache)
    plain = [decoder(mx.array([[token]]), cache) for token in tokens[-6:]]
    for actual, expected in zip(stepped, plain, strict=True):
        assert off_by(actual, expected) < 1e-5


def test_each_thread_has_steps_of_its_own():
    decoder = random_decoder("llama", "llama3")
    here, found = decoded(decoder), []

    def run():
        found.append(decoded(decoder))
        mx.eval(found)
        mx.clear_streams()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert mx.array_equal(found[0], here)


def peak_of_first_step(decoder) -> float:
    """The most memory held while a step is made, over that of the decoder's weights."""
    mx.eval(decoder.parameters())
    cache = make_cache(decoder.spec)
    mx.eval(decoder(mx.array([PROMPT]), cache))
    weights = sum(array.nbytes for _, array in tree_flatten(decoder.parameters()))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(decoder(mx.array([[1]]), cache))
    return (mx.get_peak_memory() - before) / weights


def test_fusing_has_at_most_a_blocks_weights_twice():
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 12}
    assert peak_of_first_step(random_decoder("llama", "tied", **shape)) < 0.2
    whole = random_decoder("llama", "tied", **shape)
    held = tree_flatten(whole.parameters())  # negative control: somebody has the parts' arrays
    assert peak_of_first_step(whole) > 0.5 and held
