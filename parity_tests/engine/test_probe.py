"""`engine probe` names what would go wrong, all of it that can be known in one run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from engine.probe import STOPS, probe

pytestmark = pytest.mark.usefixtures("certificates")


@pytest.fixture
def model(tmp_path, tiny_llama) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "m")
    return tmp_path / "m"


def found(model, kind=None, **options) -> dict[str, str]:
    options = {"backend": "mlx", **options}
    return {f.about: f.text for f in probe(str(model), **options) if kind in (None, f.kind)}


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_good_model_is_ready_on_both_backends(model, command):
    for backend in ("mlx", "torch", "auto"):
        result = command("engine", "probe", "--model", model, "--backend", backend)
        assert result.status == 0 and result.out.endswith("\nready\n"), result.out
    assert "no chat template" in result.out and "no parity certificate" in result.out


def tensors(model: Path, change) -> None:
    path = model / "model.safetensors"
    mx.save_safetensors(str(path), change(dict(mx.load(str(path)))))


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def overflowing(tensors):
    return {key: value * 1e30 for key, value in tensors.items()}


BREAKS = {
    "family": (lambda m: rewrite(m / "config.json", model_type="mamba"), "model", "'mamba'"),
    "setting": (lambda m: rewrite(m / "config.json", hidden_act="no"), "model", "'no'"),
    "missing": (lambda m: tensors(m, without("model.norm.weight")), "model", "model.norm.weight"),
    "numbers": (lambda m: tensors(m, overflowing), "logits", "not finite"),
    "cut": (
        lambda m: (m / "model.safetensors").write_bytes(b"x" * 100), "model", "model.safetensors"
    ),
    "tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "tokenizer", "tokenizer.json"),
    "files": (lambda m: (m / "config.json").unlink(), "files", "config.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
def test_what_stops_a_model_is_named(model, case, command):
    breaks, about, words = BREAKS[case]
    assert found(model, STOPS) == {}  # the control
    breaks(model)
    stops = found(model, STOPS)
    assert list(stops) == [about] and words in stops[about]
    result = command("engine", "probe", "--model", model, "--backend", "mlx", "--json")
    told = json.loads(result.out)
    assert result.status == 2 and told["ready"] is False
    assert {"kind": "stops", "about": about, "text": stops[about]} in told["findings"]


def test_two_faults_are_both_named(model):
    tensors(model, without("model.norm.weight"))
    (model / "tokenizer.json").unlink()
    assert set(found(model, STOPS)) == {"model", "tokenizer"}


def test_another_models_tokenizer_is_named(model):
    content = json.loads((model / "tokenizer.json").read_text())
    content["model"]["vocab"]["far"] = 5000
    (model / "tokenizer.json").write_text(json.dumps(content))
    assert "5000" in found(model, STOPS)["tokenizer"]


def test_memory_that_does_not_suffice_is_told_before_loading(model, monkeypatch):
    monkeypatch.setattr("engine.machine.available_memory", lambda: 500_000)
    monkeypatch.setattr("engine.model.load", lambda *_, **__: pytest.fail("loaded"))
    assert "978.6 KiB, and 488.3 KiB are free" in found(model, STOPS)["memory"]
    monkeypatch.undo()
    assert "memory" not in found(model)


def test_a_cast_counts_as_what_it_becomes(model, monkeypatch):
    monkeypatch.setattr("engine.machine.available_memory", lambda: 700_000)
    assert "memory" in found(model, STOPS)
    assert "memory" not in found(model, STOPS, dtype="bfloat16")


def test_what_only_chat_needs_is_a_note(model):
    rewrite(model / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    assert "chat" not in found(model)
    rewrite(model / "tokenizer_config.json", chat_template="{{ nothing.there }}")
    assert "fails" in found(model)["chat"] and not found(model, STOPS)


def test_no_end_token_is_a_note(model):
    (model / "generation_config.json").unlink()
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((model / name).read_text())
        (model / name).write_text(
            json.dumps({k: v for k, v in content.items() if not k.startswith("eos")})
        )
    assert "no file names an end token" in found(model)["tokenizer"]


def test_a_name_that_is_nothing_is_the_only_finding():
    assert list(found("nowhere")) == ["files"]


def test_a_backend_that_is_not_there_hides_nothing_else(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (model / "tokenizer.json").unlink()
    stops = found(model, STOPS, backend="auto")
    assert set(stops) == {"backend", "tokenizer"} and "--backend mlx" in stops["backend"]
