"""Parts of tensors: the same numbers as the whole's, and no more memory than they take."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.architectures import architecture, decoder_spec, supported
from engine.config import Config
from engine.decoder import Decoder
from engine.files import find_model
from engine.layers.packed import pack
from engine.sharding import Share, Slice, share_of
from engine.weights import read_weights, safetensors, write_weights
from engine.weights.arrange import arrange
from engine.weights.parts import Parts
from engine.weights.quantised import packed_places, quantisation

# Every way that a checkpoint holds a matrix: alone, fused, head by head, transposed, interleaved,
# stacked of single ones.
FAMILIES = ("llama", "phi3", "gpt_neox", "gpt2", "gpt_oss", "mixtral", "stablelm", "granitemoe")


def both(folder, ranks: int):
    """Every rank's parameters, read as parts, and the whole's, with the shares."""
    files = find_model(folder)
    spec = decoder_spec(Config(files.config))
    read = read_weights(files)
    quantised = quantisation(files.config, "config.json")
    decoder = Decoder(spec)
    places = packed_places(read, spec, decoder.shapes(), quantised, "here")
    pack(decoder, places, mx.float32)
    shapes = decoder.shapes()
    whole = arrange(read, spec, shapes, "here")
    shares = [share_of(spec, rank, ranks, places) for rank in range(ranks)]
    held = []
    for share in shares:
        tensors = read_weights(files)
        held.append(arrange(tensors, spec, shapes, "here", Parts(share, files, tensors)))
    return whole, shares, held


def check(whole, shares: list[Share], held) -> None:
    for share, own in zip(shares, held, strict=True):
        assert own.keys() == whole.keys()
        for path, array in whole.items():
            part = share.parameters.get(path)
            expected = array if part is None else part.of(array)
            assert own[path].dtype == array.dtype
            assert mx.array_equal(own[path], expected), path


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_what_the_whole_has_there(family, random_model):
    check(*both(random_model(family, next(iter(architecture(family).TINY))), 2))


@pytest.mark.full
@pytest.mark.parametrize("family", supported())
def test_parts_of_three_ranks_of_every_variant(family, random_model):
    for variant in architecture(family).TINY:
        check(*both(random_model(family, variant), 3))


@pytest.mark.parametrize(("family", "variant"), [("llama", "llama3"), ("qwen3_moe", "plain")])
def test_parts_of_packed_matrices(family, variant, quantised_model):
    check(*both(quantised_model(family, variant), 2))


def test_parts_of_an_archive(random_model, tmp_path):
    files = find_model(random_model("llama", "llama3"))
    write_weights(tmp_path / "model.npz", read_weights(files), files.config)
    check(*both(tmp_path / "model.npz", 2))


def test_a_part_in_the_wrong_place_is_seen(random_model):
    """The negative control: rank 0's parts are not those of rank 1."""
    whole, shares, held = both(random_model("llama", "llama3"), 2)
    with pytest.raises(AssertionError):
        check(whole, shares[::-1], held)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32, mx.uint32, mx.uint8, mx.float16])
def test_ranges_of_an_axis_are_read_from_the_file(tmp_path, axis, dtype):
    values = mx.array(np.arange(6 * 10).reshape(6, 10)).astype(dtype)
    path = tmp_path / "model.safetensors"
    write_weights(path, {"b": values, "a": mx.ones((3,), mx.uint8)})
    tensors = safetensors.read(path)
    parts = Parts(_share(), _Files(path), tensors)
    found = parts.read(tensors["b"], axis, [(1, 2), (3, 5)])
    assert found.dtype == dtype
    assert mx.array_equal(found, mx.take(values, mx.array([1, 3, 4]), axis=axis))


def test_no_more_than_the_part_is_held(tmp_path):
    """Peak memory is the part's; a tensor that is computed first takes the whole's as well."""
    path = tmp_path / "model.safetensors"
    write_weights(path, {"a": mx.random.normal((1024, 1024))})  # 4 MiB
    peaks = {}
    for name in ("read", "computed"):
        tensors = safetensors.read(path)
        tensor = tensors["a"] if name == "read" else tensors["a"] * 1
        parts = Parts(_share(), _Files(path), tensors)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        part = parts.read(tensor, -1, [(0, 256)])
        mx.eval(part)
        peaks[name] = mx.get_peak_memory() - before
    assert peaks["read"] < 1.1 * 2**20
    assert peaks["computed"] > 4 * 2**20


class _Files:
    """As much of ModelFiles as is looked at."""

    def __init__(self, *paths) -> None:
        self.weights = paths


def _share() -> Share:
    return Share(0, 2, None, None, {"a.weight": Slice(-2, 0, 1, 2)}, {})
