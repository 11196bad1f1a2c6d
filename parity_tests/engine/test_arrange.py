"""Checkpoint names to engine names: every tensor in its place, and none too many or too few."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.architectures import architecture, decoder_spec, supported
from engine.config import Config
from engine.decoder import Decoder
from engine.errors import CorruptWeights
from engine.names import Name
from engine.spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from engine.weights import arrange

WHERE = "some/folder"
NAMES = (
    Name("model.embed", ("embed",)),
    Name("model.layers.{i}", ("blocks.{i}",)),
    Name("model.layers.{i}.c_attn", ("blocks.{i}.q", "blocks.{i}.k", "blocks.{i}.v"), True),
    Name("model.layers.{i}.attn", ("blocks.{i}.o",)),
    Name("model.layers.{i}.gate", ("blocks.{i}.gate",)),
    Name("lm_head", ("head",)),
)
SHAPES = {"embed.weight": (11, 4), "head.weight": (11, 4)} | {
    f"blocks.{i}.{name}": shape
    for i in range(2)
    for name, shape in {
        "q.weight": (6, 4),
        "q.bias": (6,),
        "k.weight": (3, 4),
        "k.bias": (3,),
        "v.weight": (2, 4),
        "v.bias": (2,),
        "o.weight": (4, 6),
    }.items()
}
TIED = {path: shape for path, shape in SHAPES.items() if path != "head.weight"}


def spec(*, tied: bool = False, names: tuple[Name, ...] = NAMES) -> DecoderSpec:
    """Two blocks; `arrange` looks at names, the number of blocks and the tie alone."""
    norm = NormSpec("rms", 1e-5)
    block = BlockSpec(AttentionSpec(1, 1, 4, 0.5), MLPSpec(4, "silu"), norm)
    return DecoderSpec("toy", 11, 4, (block, block), norm, names, tied, 64)


def checkpoint() -> dict[str, mx.array]:
    """A whole checkpoint, every number different."""
    shapes = {"model.embed.weight": (11, 4), "lm_head.weight": (11, 4)}
    for i in range(2):
        shapes[f"model.layers.{i}.c_attn.weight"] = (4, 11)
        shapes[f"model.layers.{i}.c_attn.bias"] = (11,)
        shapes[f"model.layers.{i}.attn.weight"] = (4, 6)
    tensors, start = {}, 0
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        tensors[name] = mx.arange(start, start + count).reshape(shape)
        start += count
    return tensors


def checkpoint_of_tied() -> dict[str, mx.array]:
    """The same without a head."""
    return {name: array for name, array in checkpoint().items() if name != "lm_head.weight"}


def message(tensors: dict[str, mx.array], **options: bool) -> str:
    """The message of the error; it is one line and names the place."""
    shapes = TIED if options.get("tied") else SHAPES
    with pytest.raises(CorruptWeights) as caught:
        arrange(tensors, spec(**options), shapes, WHERE)
    text = str(caught.value)
    assert "\n" not in text
    assert WHERE in text
    return text


def same(found: dict[str, mx.array], expected: dict[str, mx.array]) -> bool:
    return set(found) == set(expected) and all(
        found[name].shape == array.shape and bool(mx.array_equal(found[name], array))
        for name, array in expected.items()
    )


def test_fused_rows_are_split_after_the_transpose():
    tensors = checkpoint()
    found = arrange(tensors, spec(), SHAPES, WHERE)
    assert {path: tuple(array.shape) for path, array in found.items()} == SHAPES
    for i in range(2):
        fused = tensors[f"model.layers.{i}.c_attn.weight"].T
        parts = [found[f"blocks.{i}.{name}.weight"] for name in "qkv"]
        assert mx.array_equal(mx.concatenate(parts), fused)
        parts = [found[f"blocks.{i}.{name}.bias"] for name in "qkv"]
        assert mx.array_equal(mx.concatenate(parts), tensors[f"model.layers.{i}.c_attn.bias"])
        assert mx.array_equal(
            found[f"blocks.{i}.o.weight"], tensors[f"model.layers.{i}.attn.weight"]
        )
    assert mx.array_equal(found["head.weight"], tensors["lm_head.weight"])


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=4), transpose=st.booleans())
def test_any_split(rows, transpose):
    targets = tuple(f"part{n}" for n in range(len(rows)))
    shapes = {f"{target}.weight": (count, 3) for target, count in zip(targets, rows, strict=True)}
    fused = mx.random.normal((sum(rows), 3))
    names = (Name("model.fused", targets, transpose),)
    tensors = {"model.fused.weight": fused.T if transpose else fused}
    found = arrange(tensors, spec(names=names), shapes, WHERE)
    assert mx.array_equal(mx.concatenate([found[f"{target}.weight"] for target in targets]), fused)


@given(
    rows=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    groups=st.integers(1, 4),
    transpose=st.booleans(),
    bias=st.booleans(),
)
def test_rows_that_interleave_in_groups(rows, groups, transpose, bias):
    """Group g of the fused rows holds group g of every target, in the order of the targets."""
    targets = tuple(f"part{n}" for n in range(len(rows)))
    leaf, rest = ("bias", ()) if bias else ("weight", (3,))
    parts = [mx.random.normal((groups, count, *rest)) for count in rows]
    shapes = {
        f"{t}.{leaf}": (groups * count, *rest) for t, count in zip(targets, rows, strict=True)
    }
    fused = mx.concatenate(parts, axis=1).flatten(0, 1)
    tensors = {f"model.fused.{leaf}": fused.T if transpose else fused}
    names = (Name("model.fused", targets, transpose, groups=groups),)
    found = arrange(tensors, spec(names=names), shapes, WHERE)
    expected = {f"{t}.{leaf}": p.flatten(0, 1) for t, p in zip(targets, parts, strict=True)}
    assert same(found, expected)
    apart = (Name("model.fused", targets, transpose),)
    in_one = arrange(tensors, spec(names=apart), shapes, WHERE)
    assert same(in_one, expected) == (groups == 1)


def test_grouped_rows_have_the_shape_of_all_groups():
    shapes = {"q.weight": (8, 3), "k.weight": (4, 3)}
    names = (Name("model.fused", ("q", "k"), groups=4),)
    with pytest.raises(CorruptWeights, match=r"has shape \(11, 3\), expected is \(12, 3\)"):
        arrange({"model.fused.weight": mx.zeros((11, 3))}, spec(names=names), shapes, WHERE)


def test_parameters_of_heads_are_stacked():
    shapes = {"norm.weight": (3, 5)}
    names = (Name("model.norms.{e}.weight", ("norm.weight",), parameter=True),)
    gains = {f"model.norms.{head}.weight": mx.random.normal((5,)) for head in range(3)}
    found = arrange(gains, spec(names=names), shapes, WHERE)
    assert same(found, {"norm.weight": mx.stack(list(gains.values()))})
    del gains["model.norms.2.weight"]
    with pytest.raises(CorruptWeights, match=r"'model\.norms\.2\.weight' is missing"):
        arrange(gains, spec(names=names), shapes, WHERE)


def test_a_base_model_lacks_the_first_component():
    tensors = checkpoint()
    base = {name.removeprefix("model."): array for name, array in tensors.items()}
    assert same(arrange(base, spec(), SHAPES, WHERE), arrange(tensors, spec(), SHAPES, WHERE))
    del base["lm_head.weight"]
    tied = arrange(base, spec(tied=True), TIED, WHERE)
    assert mx.array_equal(tied["embed.weight"], tensors["model.embed.weight"])


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.layers.0.attn.bias",
        "model.layers.1.attn.masked_bias",
        "gpt.layers.1.attention.bias",
        "gpt.layers.1.attention.masked_bias",
    ],
)
def test_buffers_are_no_left_overs(name):
    tensors = checkpoint()
    expected = arrange(tensors, spec(), SHAPES, WHERE)
    assert same(arrange({**tensors, name: mx.ones(3)}, spec(), SHAPES, WHERE), expected)


def test_a_parameter_named_like_a_buffer_is_used():
    shapes = {**SHAPES, "blocks.0.o.bias": (4,), "blocks.1.o.bias": (4,)}
    tensors = checkpoint()
    with pytest.raises(CorruptWeights, match=r"model\.layers\.0\.attn\.bias"):
        arrange(tensors, spec(), shapes, WHERE)
    biases = {f"model.layers.{i}.attn.bias": mx.full((4,), i) for i in range(2)}
    found = arrange({**tensors, **biases}, spec(), shapes, WHERE)
    assert found["blocks.1.o.bias"].tolist() == [1, 1, 1, 1]


class TestBlocksForDrafting:
    def test_as_many_as_there_may_be_are_passed_over(self):
        tensors = checkpoint()
        drafts = {f"model.layers.2.{name}.weight": mx.ones((11, 4)) for name in ("attn", "embed")}
        expected = arrange(tensors, spec(), SHAPES, WHERE)
        one = replace(spec(), draft_blocks=1)
        assert same(arrange({**tensors, **drafts}, one, SHAPES, WHERE), expected)
        assert same(arrange(tensors, one, SHAPES, WHERE), expected)

    @pytest.mark.parametrize("name", ["model.layers.3.attn.weight", "model.layers.20.attn.weight"])
    def test_no_more_than_that(self, name):
        one = replace(spec(), draft_blocks=1)
        with pytest.raises(CorruptWeights, match=f"{name!r}.* belongs to no module"):
            arrange({**checkpoint(), name: mx.ones((4, 6))}, one, SHAPES, WHERE)


@settings(deadline=None, max_examples=30)
@given(groups=st.integers(1, 4), sizes=st.lists(st.integers(1, 3), min_size=2, max_size=3))
def test_rows_of_groups_stand_by_turns(groups, sizes):
    """As gate and up of an expert may, column by column where transposed, and their biases."""
    targets = tuple(f"part{n}" for n in range(len(sizes)))
    shapes = {t: (2, groups * n, 3) for t, n in zip(targets, sizes, strict=True)}
    shapes |= {f"{t}_bias": shape[:2] for t, shape in shapes.items()}
    names = (
        Name("model.w", targets, True, parameter=True, groups=groups),
        Name("model.w_bias", tuple(f"{t}_bias" for t in targets), parameter=True, groups=groups),
    )
    parts = {path: mx.random.normal(shape) for path, shape in shapes.items()}

    def fused(paths: list[str]) -> mx.array:
        rows = [parts[p].reshape(2, groups, -1, *parts[p].shape[2:]) for p in paths]
        joined = mx.concatenate(rows, axis=2)
        return joined.reshape(2, -1, *joined.shape[3:])

    tensors = {
        "model.w": fused(list(targets)).swapaxes(1, 2),
        "model.w_bias": fused([f"{t}_bias" for t in targets]),
    }
    assert same(arrange(tensors, spec(names=names), shapes, WHERE), parts)


class TestTiedHead:
    def test_a_copy_of_the_embedding_is_no_left_over(self):
        tensors = checkpoint()
        tensors["lm_head.weight"] = tensors["model.embed.weight"]
        assert "head.weight" not in arrange(tensors, spec(tied=True), TIED, WHERE)

    def test_it_stands_in_for_the_embedding(self):
        tensors = checkpoint()
        del tensors["model.embed.weight"]
        found = arrange(tensors, spec(tied=True), TIED, WHERE)
        assert mx.array_equal(found["embed.weight"], tensors["lm_head.weight"])

    def test_every_spelling_of_it_is_known(self):
        tensors = checkpoint()
        tensors["embed_out.weight"] = tensors["model.embed.weight"]
        del tensors["lm_head.weight"]
        names = (*NAMES, Name("embed_out", ("head",)))
        assert same(
            arrange(tensors, spec(tied=True, names=names), TIED, WHERE),
            arrange(checkpoint_of_tied(), spec(tied=True), TIED, WHERE),
        )
        untied = arrange(tensors, spec(names=names), SHAPES, WHERE)
        assert mx.array_equal(untied["head.weight"], tensors["embed_out.weight"])
        del tensors["embed_out.weight"]
        with pytest.raises(CorruptWeights, match=r"'lm_head\.weight' is missing"):
            arrange(tensors, spec(names=names), SHAPES, WHERE)

    def test_another_matrix_is_refused(self):
        text = message(checkpoint(), tied=True)
        assert "'lm_head.weight'" in text
        assert "'model.embed.weight'" in text
        assert "tie_word_embeddings" in text


class TestBadCheckpoints:
    def test_a_missing_tensor(self):
        tensors = checkpoint()
        del tensors["model.layers.1.c_attn.bias"]
        text = message(tensors)
        assert "'model.layers.1.c_attn.bias' is missing" in text
        assert "more" not in text
        assert "fetch the weights again" in text

    def test_several_missing_tensors_are_counted(self):
        tensors = {name: array for name, array in checkpoint().items() if ".1." not in name}
        assert "'model.layers.1.c_attn.weight' (and 2 more) is missing" in message(tensors)

    def test_a_misspelt_tensor_is_shown_with_the_missing_one(self):
        tensors = checkpoint()
        tensors["model.layers.0.attention_out.weight"] = tensors.pop("model.layers.0.attn.weight")
        text = message(tensors)
        assert "'model.layers.0.attn.weight' is missing" in text
        assert "'model.layers.0.attention_out.weight'" in text

    def test_a_missing_head(self):
        tensors = checkpoint()
        del tensors["lm_head.weight"]
        text = message(tensors)
        assert "'lm_head.weight' is missing" in text
        assert "tie_word_embeddings" in text

    def test_left_overs(self):
        tensors = checkpoint() | {"model.layers.2.attn.weight": mx.ones((4, 6))}
        text = message(tensors)
        assert "'model.layers.2.attn.weight' in" in text
        assert "belongs to no module" in text
        assert "config.json" in text
        tensors |= {"a.scales": mx.ones(1), "b.scales": mx.ones(1)}
        assert "(and 2 more)" in message(tensors)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("model.layers.0.attn.weight", (4, 6)), ("model.layers.1.c_attn.weight", (4, 11))],
    )
    def test_a_wrong_shape(self, name, expected):
        tensors = checkpoint()
        tensors[name] = tensors[name].T
        text = message(tensors)
        assert f"'{name}' in {WHERE} has shape {expected[::-1]}, expected is {expected}" in text
        assert "config.json" in text
        tensors["model.embed.weight"] = mx.ones((10, 4))
        assert "(and 1 more)" in message(tensors)


TINY = [(kind, name) for kind in supported() for name in architecture(kind).TINY]


@pytest.mark.parametrize(("model_type", "variant"), TINY)
def test_names_and_shapes_are_those_of_transformers(model_type, variant):
    """A checkpoint as transformers would save it has a place for every tensor, in every family."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    raw = {"model_type": model_type, **architecture(model_type).TINY[variant]}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
    saved = {
        name: mx.zeros(tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not model.config.tie_word_embeddings
    }
    decoder = Decoder(decoder_spec(Config(raw)))
    found = arrange(saved, decoder.spec, decoder.shapes(), WHERE)
    assert {path: tuple(array.shape) for path, array in found.items()} == decoder.shapes()
