"""Goldens: recorded, found, and refused when anything about them is not as it was."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from engine.files import find_model
from harness.errors import BadGolden
from harness.golden.manifest import weights_digest
from harness.golden.store import GoldenReference, record, verify
from harness.metrics import relative_error


@pytest.fixture
def golden(tmp_path, tiny_llama):
    """A copy of one golden model with one trace and its manifest."""
    folder = tmp_path / "golden"
    shutil.copytree(tiny_llama, folder / "models" / "tiny-llama")
    (folder / "traces").mkdir()
    source = tiny_llama.parents[1]
    manifest = json.loads((source / "MANIFEST.json").read_text())
    name = "traces/tiny-llama.torch.float32.safetensors"
    shutil.copy(source / name, folder / name)
    manifest["goldens"] = [entry for entry in manifest["goldens"] if entry["file"] == name]
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder


def test_greedy_tokens_stand_beside_their_margins(golden):
    from safetensors import safe_open

    path = next((golden / "traces").iterdir())
    with safe_open(path, framework="numpy") as file:
        (greedy,) = [p for p in json.loads(file.metadata()["golden"])["probes"] if p["prompt"]]
        tokens = file.get_tensor("greedy/tokens")
    assert len(tokens) - greedy["prompt"] == len(greedy["margins"]) == 64
    assert min(greedy["margins"]) > 0


def test_what_is_shipped_is_whole(command):
    result = command("harness", "golden", "verify")
    assert result.status == 0, result.err
    assert len(result.out.splitlines()) == 6


def test_the_manifest_says_where_each_golden_comes_from(golden):
    (entry,) = json.loads((golden / "MANIFEST.json").read_text())["goldens"]
    for key in ("sha256", "weights", "config", "tokenizer", "dtype", "device", "date", "packages"):
        assert entry[key]
    assert entry["packages"]["torch"] and "golden record" in entry["command"]


def test_recording_twice_gives_the_same_bytes(tiny_llama, tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    paths = [record(str(tiny_llama), "torch", "float32", folder) for folder in folders]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert verify(folders[0]) == [f"traces/{paths[0].name}"]


def test_what_is_shipped_is_what_a_new_recording_says(tiny_llama, tmp_path, monkeypatch):
    """On another machine the noise may differ; the oracle may not, beyond its own rounding."""
    record(str(tiny_llama), "torch", "float32", tmp_path)
    files = find_model(tiny_llama)
    shipped = GoldenReference(files, "float32")
    monkeypatch.setattr("harness.golden.manifest.golden_folders", lambda files: [tmp_path])
    new = GoldenReference(files, "float32")
    assert new.tokens() == shipped.tokens()
    for probe in shipped.probes:
        pairs = zip(
            shipped.evidence(probe).expected["propagated"].values(),
            new.evidence(probe).expected["propagated"].values(),
            strict=True,
        )
        assert all(relative_error(a, b) < 1e-12 for a, b in pairs)


def tampered(folder):
    path = next((folder / "traces").iterdir())
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def truncated(folder):
    path = next((folder / "traces").iterdir())
    os.truncate(path, path.stat().st_size // 2)


def gone(folder):
    next((folder / "traces").iterdir()).unlink()


def other_weights(folder):
    import mlx.core as mx

    path = folder / "models" / "tiny-llama" / "model.safetensors"
    weights = mx.load(str(path))
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.0001
    mx.eval(weights)
    mx.save_safetensors(str(path), weights)


def other_config(folder):
    path = folder / "models" / "tiny-llama" / "config.json"
    path.write_text(path.read_text().replace("5000.0", "5001.0"))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (tampered, "altered or cut short"),
        (truncated, "altered or cut short"),
        (gone, "cannot be read"),
        (other_weights, "another weights"),
        (other_config, "another config"),
    ],
)
def test_verify_names_and_refuses_what_changed(command, golden, spoil, words):
    assert command("harness", "golden", "verify", "--golden", golden).status == 0
    spoil(golden)
    result = command("harness", "golden", "verify", "--golden", golden)
    assert result.status == 2 and words in result.err
    assert "tiny-llama.torch.float32.safetensors" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("spoil", [tampered, truncated, gone])
def test_compare_refuses_a_golden_that_changed(command, golden, spoil):
    model = golden / "models" / "tiny-llama"
    spoil(golden)
    result = command("harness", "compare", "--model", model, "--reference", "golden")
    assert result.status == 2 and "tiny-llama.torch.float32" in result.err


def test_a_file_nobody_recorded_is_named(command, golden):
    (golden / "traces" / "stray.safetensors").write_bytes(b"")
    result = command("harness", "golden", "verify", "--golden", golden)
    assert result.status == 2 and "stray.safetensors" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a manifest"),
        ("[]", "not a manifest"),
        ('{"schema": "harness.manifest/9", "goldens": []}', "harness.manifest/9"),
        ('{"schema": "harness.manifest/1", "goldens": [{}]}', "without"),
    ],
)
def test_manifests_that_are_none(command, golden, text, words):
    (golden / "MANIFEST.json").write_text(text)
    result = command("harness", "golden", "verify", "--golden", golden)
    assert result.status == 2 and words in result.err


def test_a_manifest_cannot_point_outside_its_folder(command, golden):
    manifest = json.loads((golden / "MANIFEST.json").read_text())
    manifest["goldens"][0]["file"] = "../../etc/passwd"
    (golden / "MANIFEST.json").write_text(json.dumps(manifest))
    result = command("harness", "golden", "verify", "--golden", golden)
    assert result.status == 2 and "outside its folder" in result.err


def test_an_interrupted_recording_leaves_the_old_one(golden, monkeypatch):
    before = {p: p.read_bytes() for p in golden.rglob("*") if p.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        record(str(golden / "models" / "tiny-llama"), "torch", "float32", golden)
    assert {p: p.read_bytes() for p in golden.rglob("*") if p.is_file()} == before


def test_the_digest_is_of_the_tensors_not_of_the_file(tiny_llama, tmp_path):
    from engine.convert import convert
    from engine.weights import read_weights

    npz = convert(str(tiny_llama), tmp_path / "m" / "model.npz")
    converted, original = find_model(npz), find_model(tiny_llama)
    digests = {weights_digest(read_weights(files)) for files in (converted, original)}
    assert len(digests) == 1
    assert GoldenReference(converted, "float32").probes


def test_no_golden_says_how_to_make_one(random_model):
    with pytest.raises(BadGolden, match="harness golden record --model"):
        GoldenReference(find_model(random_model("llama", "tied")), "float32")
