"""`engine list`: what headers say, and whether parity is proven, without a weight being read."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest

from engine.certificate import SCHEMA
from engine.convert import convert
from engine.facts import facts_of
from engine.files import find_model
from engine.subject import subject_of, weights_of

pytestmark = pytest.mark.usefixtures("certificates")


def facts(model):
    return facts_of(find_model(model))


def test_headers_say_family_size_and_dtype(golden_model):
    found = facts(golden_model)
    assert found.family in ("llama", "gpt2", "gemma3_text") and found.dtype == "float32"
    assert found.parameters > 100_000 and found.quantisation is None and found.problem is None


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_either_format_says_the_same(tiny_llama, tmp_path, suffix):
    assert facts(convert(tiny_llama, tmp_path / f"model{suffix}")) == facts(tiny_llama)


def test_quantised_models_say_how(quantised_model):
    found = facts(quantised_model("llama", "llama3", dtype="bfloat16"))
    assert found.quantisation == "4-bit affine" and found.dtype == "bfloat16"
    assert facts(quantised_model("llama", "llama3", mode="mxfp4")).quantisation == "4-bit mxfp4"


def test_what_does_not_run_says_why(tmp_path, tiny_llama):
    shutil.copytree(tiny_llama, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for change, words in (
        ({"model_type": "mamba"}, "'mamba' is not supported"),
        ({"hidden_act": "swish2"}, "swish2"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"model_type": 3}, "model_type"),
    ):
        (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **change}))
        found = facts(tmp_path / "m")
        assert words in found.problem and not found.proven


def test_weights_are_not_read(tmp_path, tiny_llama, monkeypatch):
    """Numbers that are none change nothing; a header that is none does."""
    shutil.copytree(tiny_llama, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"\xff\xff\xff\xff")
    monkeypatch.setattr(mx, "load", lambda *_: pytest.fail("read"))
    assert facts(path.parent) == facts(tiny_llama)
    path.write_bytes(data[:-4])
    assert "truncated" in facts(path.parent).problem


def certified(model) -> dict:
    """A certificate as `harness certify` writes it, without the comparison."""
    files = find_model(model)
    return {
        "schema": SCHEMA,
        "verdict": "pass",
        "candidate": "engine",
        "model": {
            "folder": str(files.folder.resolve()),
            "weights": [vars(each) for each in weights_of(files)],
        },
        "subject": subject_of(files).described,
        "dtypes": ["float32"],
        "calibration": {"calibrated": True},
        "date": "2026-01-01T00:00:00+00:00",
        "expires": "2999-01-01T00:00:00+00:00",
    }


def test_proven_is_what_a_certificate_says_of_weights_that_are_known(
    tiny_llama, certificates, tmp_path, monkeypatch, command
):
    monkeypatch.setattr("engine.hashes.SETTLED", -1)
    shutil.copytree(tiny_llama, tmp_path / "dirs" / "m")
    model = tmp_path / "dirs" / "m"
    content = certified(model)
    (certificates / "c.json").write_text(json.dumps(content))
    assert facts(model).proven
    monkeypatch.chdir(tmp_path)
    listed = command("engine", "list", "--model-dirs", "dirs")
    line = next(line for line in listed.out.splitlines() if line.startswith("dirs/m"))
    assert line.rstrip().endswith("proven") and "not proven" not in line
    (certificates / "c.json").write_text(json.dumps({**content, "verdict": "fail"}))
    listed = command("engine", "list", "--model-dirs", "dirs", "--json")
    found = next(each for each in json.loads(listed.out) if each["name"] == "dirs/m")
    assert not found["proven"] and found["reasons"] == ["c.json: its verdict is 'fail', not 'pass'"]
    assert found["family"] == "llama" and found["dtype"] == "float32"


def test_a_model_of_several_dtypes_has_to_name_one(tmp_path, tiny_llama, certificates):
    from engine.certificate import standing

    shutil.copytree(tiny_llama, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    tensors = dict(mx.load(str(path)))
    name = next(name for name in tensors if "norm" in name)
    mx.save_safetensors(str(path), {**tensors, name: tensors[name].astype(mx.bfloat16)})
    content = certified(tmp_path / "m")
    certificates.mkdir()
    (certificates / "c.json").write_text(json.dumps(content))
    files = find_model(tmp_path / "m")
    assert facts_of(files).dtype == "bfloat16, float32"
    assert "name one with --dtype" in standing(files).reasons[0]
    assert standing(files, "float32").proven
