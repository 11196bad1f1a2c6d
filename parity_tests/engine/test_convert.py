"""Either weight format from either, with nothing changed and nothing overwritten unasked."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from engine.convert import convert
from engine.errors import CorruptWeights, EngineError, ModelNotFound, UnsupportedFormat
from engine.files import INDEX, find_model
from engine.weights import read_weights, write_weights

from ..conftest import no_room

CONFIG = {"model_type": "llama", "tie_word_embeddings": True}
TENSORS = {
    "model.embed_tokens.weight": mx.random.normal((5, 4)).astype(mx.bfloat16),
    "model.norm.weight": mx.array([1.0, float("nan"), -0.0, 3.5], mx.float32),
    "steps": mx.array(7, mx.int64),
}


def same(found: dict[str, mx.array]) -> bool:
    return set(found) == set(TENSORS) and all(
        found[name].dtype == array.dtype and mx.array_equal(found[name], array, equal_nan=True)
        for name, array in TENSORS.items()
    )


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    write_weights(folder / "model.safetensors", TENSORS)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        (folder / name).write_text(json.dumps({"from": name}))
    (folder / "README.md").write_text("stays")
    return folder


def message(error: type[EngineError], model: Path, out: Path, **options: bool) -> str:
    with pytest.raises(error) as caught:
        convert(model, out, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert type(caught.value) is error
    return text


def test_there_and_back(source, tmp_path):
    packed = convert(source, tmp_path / "packed/tiny.npz")
    assert packed == tmp_path / "packed/tiny.npz"
    back = convert(packed, tmp_path / "back")
    assert back == tmp_path / "back/model.safetensors"
    for written in (packed, back):
        found = find_model(written)
        assert found.config == CONFIG
        assert same(read_weights(found))
        names = sorted(path.name for path in written.parent.iterdir())
        copied = "chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json"
        assert names == sorted([*copied, written.name])
        assert (written.parent / "tokenizer.json").read_text() == '{"from": "tokenizer.json"}'


def test_an_npz_is_a_model_by_itself(source, tmp_path):
    packed = convert(source, tmp_path / "tiny.npz")
    (tmp_path / "config.json").unlink()
    assert find_model(packed).config == CONFIG
    out = convert(packed, tmp_path / "tiny.safetensors")
    assert same(read_weights(find_model(out)))
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_shards_become_one_file(source, tmp_path):
    (source / "model.safetensors").unlink()
    index = {}
    for i, (name, array) in enumerate(TENSORS.items()):
        write_weights(source / f"part{i}.safetensors", {name: array})
        index[name] = f"part{i}.safetensors"
    (source / INDEX).write_text(json.dumps({"weight_map": index}))
    out = convert(source, tmp_path / "whole.safetensors")
    assert same(read_weights(find_model(out)))


def test_within_the_same_folder_only_the_weights_are_written(source):
    before = {path.name for path in source.iterdir()}
    convert(source, source / "tiny.npz")
    assert {path.name for path in source.iterdir()} == before | {"tiny.npz"}
    assert (source / "config.json").read_text() == json.dumps(CONFIG)


@pytest.mark.parametrize("force", [False, True])
def test_the_source_is_never_overwritten(source, tmp_path, force):
    link = tmp_path / "link.safetensors"
    link.symlink_to(source / "model.safetensors")
    for out in (source / "model.safetensors", source, link):
        text = message(EngineError, source, out, force=force)
        assert "is the model to be converted" in text
        assert "another name" in text
    assert same(read_weights(find_model(source)))


def test_an_existing_file_needs_force(source, tmp_path):
    out = tmp_path / "out.npz"
    out.write_bytes(b"precious")
    text = message(EngineError, source, out)
    assert str(out) in text
    assert "--force" in text
    assert out.read_bytes() == b"precious"
    assert same(read_weights(find_model(convert(source, out, force=True))))


def test_another_models_files_need_force(source, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    text = message(EngineError, source, other / "tiny.npz")
    assert str(other / "config.json") in text
    assert "--force" in text
    assert [path.name for path in other.iterdir()] == ["config.json"]
    convert(source, other / "tiny.npz", force=True)
    assert find_model(other).config == CONFIG
    convert(source, other / "second.npz")  # equal files are no clash


@pytest.mark.parametrize("name", ["model.bin", "model.gguf", "x.pt"])
def test_formats_that_are_not_written(source, tmp_path, name):
    text = message(UnsupportedFormat, source, tmp_path / name)
    assert str(tmp_path / name) in text
    assert ".npz or .safetensors" in text


def test_a_folder_with_a_dot_in_its_name(source, tmp_path):
    assert convert(source, tmp_path / "v1.5").name == "model.safetensors"


def test_a_place_that_cannot_be_written(source, tmp_path):
    (tmp_path / "file").write_text("")
    text = message(EngineError, source, tmp_path / "file/out.npz")
    assert str(tmp_path / "file/out.npz") in text
    assert "check" in text


@pytest.mark.parametrize("out", ["model.npz", "model.safetensors"])
@pytest.mark.parametrize("room", [0, 30, 200])
def test_a_full_disk_changes_nothing(source, tmp_path, out, room):
    """Whether it is full at once, after the configuration, or amid the weights."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / out).write_bytes(b"precious")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with no_room(room):
        text = message(EngineError, source, folder / out, force=True)
    assert str(folder / out) in text and "room" in text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert same(read_weights(find_model(convert(source, folder / out, force=True))))


def test_a_bad_source_leaves_nothing(source, tmp_path):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in message(CorruptWeights, source, tmp_path / "out/m.npz")
    assert "no/such" in message(ModelNotFound, "./no/such", tmp_path / "out/m.npz")
    assert not (tmp_path / "out").exists()
