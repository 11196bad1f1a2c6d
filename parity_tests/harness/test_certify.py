"""`harness certify`: what it writes makes `auto` take MLX, and any single change makes it not."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.backend import choose_backend
from engine.certificate import standing
from engine.console import run
from engine.files import find_model

ROOT = Path(__file__).parents[2]


@dataclass
class World:
    """A model, the folder of certificates, and the certificate written for it."""

    model: Path
    certificates: Path
    text: str

    def write(self, content: dict | None = None) -> None:
        self.certificates.mkdir(exist_ok=True)
        text = self.text if content is None else json.dumps(content)
        (self.certificates / "tiny-llama.json").write_text(text)

    def choice(self, **options):
        return choose_backend(find_model(self.model), "auto", **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> str:
    """What `harness certify` writes for tiny-llama, where XDG_DATA_HOME says."""
    from harness.cli import app

    home = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLX_PARITY_CERTIFICATES", raising=False)
        patch.setenv("XDG_DATA_HOME", str(home))
        model = ROOT / "golden" / "models" / "tiny-llama"
        assert run(app, "harness", ["certify", "--model", str(model), "--days", "30"]) == 0
        (file,) = (home / "mlx-parity" / "certificates").glob("*.json")
        assert file.name.startswith("tiny-llama-")
        assert choose_backend(find_model(model), "auto").backend == "mlx"  # found where it lies
    return file.read_text()


@pytest.fixture
def world(written, certificates, tiny_llama, tmp_path) -> World:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    world = World(model, certificates, written)
    world.write()
    return world


def test_a_certificate_says_what_was_compared(written):
    content = json.loads(written)
    assert content["schema"] == "harness.certificate/1" and content["verdict"] == "pass"
    assert content["dtypes"] == ["float32"] == list(content["checks"])
    assert content["checks"]["float32"]["blocks"] == "pass"
    worst = content["ratios"]["float32"]["isolated"]
    assert 0 < worst["ratio"] < worst["limit"]
    assert content["calibration"]["source"].endswith(".json")
    assert content["subject"]["packages"]["mlx"] and content["reference_packages"]["torch"]


def test_with_it_auto_takes_mlx_and_without_it_not(world):
    choice = world.choice()
    assert choice.backend == "mlx" and "tiny-llama.json" in choice.reason
    shutil.rmtree(world.certificates)
    choice = world.choice()
    assert choice.backend == "torch" and "there is no parity certificate" in choice.reason


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def same_times(change, path: Path) -> None:
    """Change a file and set its times back, as rsync and tar do."""
    stat = path.stat()
    change(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def more(path: Path) -> None:
    """Another value of a key that nothing reads."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "added": 1}))


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("model.safetensors", flip, "model.safetensors is not the one that was certified"),
        ("config.json", more, "the configuration is not the one that was certified"),
        ("tokenizer.json", more, "tokenizer.json is not the one that was certified"),
        ("generation_config.json", more, "generation_config.json is not the one"),
        ("tokenizer_config.json", Path.unlink, "tokenizer_config.json is not the one"),
        ("chat_template.jinja", Path.touch, "chat_template.jinja is not the one"),
    ],
)
def test_a_changed_model_has_no_certificate(world, file, change, reason):
    assert world.choice().backend == "mlx"
    change(world.model / file)
    choice = world.choice()
    assert choice.backend == "torch" and reason in choice.reason


def test_weights_changed_behind_the_clocks_back_are_noticed(world, monkeypatch):
    monkeypatch.setattr("engine.hashes.SETTLED", -1)
    weights = world.model / "model.safetensors"
    assert world.choice().backend == "mlx"  # and now its hash is remembered
    assert standing(find_model(world.model), read=False).proven
    same_times(flip, weights)
    assert "was not read" in standing(find_model(world.model), read=False).reasons[0]
    assert "model.safetensors is not the one" in world.choice().reason


CHANGES = {
    "verdict": ("fail", "its verdict is 'fail'"),
    "candidate": ("mlx-lm", "what was certified is mlx-lm"),
    "expires": ("2026-01-01T00:00:00+00:00", "it expired on 2026-01-01"),
    "date": ("2999-01-01T00:00:00+00:00", "it is from the future"),
    "dtypes": (["bfloat16"], "the dtype is float32, certified were bfloat16"),
    "schema": ("harness.certificate/2", "its schema is"),
    "subject.engine": ("0.0.9", "certified was 0.0.9"),
    "subject.source": ("0" * 64, "the engine's source is not that"),
    "subject.device_class": ("cuda-nvidia-h100", "certified was cuda-nvidia-h100"),
    "subject.tf32": ("on", "TF32 is off, certified was on"),
    "subject.packages.mlx": ("0.1.0", "certified was 0.1.0"),
    "subject.packages.mlx-metal": ("0.1.0", "mlx-metal is not installed"),
    "subject.packages.numpy": ("1.0", "certified was 1.0"),
    "model.weights": ([], "it names no weights"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_certificate_of_anything_else_does_not_count(world, key):
    value, reason = CHANGES[key]
    content = json.loads(world.text)
    *parents, last = key.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    world.write(content)
    choice = world.choice()
    assert choice.backend == "torch" and reason in choice.reason


def test_tf32_that_is_switched_on_has_no_certificate(world, monkeypatch):
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    assert "TF32 is on, certified was off" in world.choice().reason


def test_a_dtype_that_was_not_compared_has_no_certificate(world):
    assert world.choice(dtype="float32").backend == "mlx"
    choice = world.choice(dtype="bfloat16")
    assert choice.backend == "torch" and "the dtype is bfloat16" in choice.reason


def test_of_two_reasons_each_has_a_line(world):
    content = json.loads(world.text)
    content["verdict"], content["subject"]["tf32"] = "fail", "on"
    world.write(content)
    lines = [line for line in world.choice().reason.splitlines() if "tiny-llama.json: " in line]
    assert len(lines) == 2


def test_another_models_certificate_is_no_concern(world):
    choice = choose_backend(find_model("tiny-gpt2"), "auto")
    assert choice.backend == "torch" and "there is no parity certificate" in choice.reason


def test_one_that_holds_beside_ones_that_do_not(world):
    (world.certificates / "broken.json").write_text("{")
    (world.certificates / "a.json").write_text(world.text.replace('"pass"', '"fail"'))
    assert world.choice().backend == "mlx"


def test_without_torch_auto_names_both_ways_out(world, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "torch", None)
    arguments = ("engine", "generate", "--model", world.model, "--prompt", "x", "--max-tokens", 1)
    assert command(*arguments).status == 0  # the certificate holds
    shutil.rmtree(world.certificates)
    result = command(*arguments)
    assert result.status == 2 and len(result.err.splitlines()) == 1
    for words in ("--backend mlx", "harness certify --model", "torch", "no parity certificate"):
        assert words in result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reference", "engine"], "cannot prove itself"),
        (["--days", "0"], "--days 0"),
        (["--out", "/nowhere/x.json"], "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_certified_is_one_line(certificates, command, options, words):
    result = command("harness", "certify", "--model", "tiny-llama", *options)
    assert result.status == 2 and words in result.err and len(result.err.splitlines()) == 1
    assert not certificates.exists()


def test_a_model_that_fails_gets_no_certificate(certificates, command, monkeypatch, tmp_path):
    """The control: an engine with a fault."""
    from engine.layers.norm import Norm

    real = Norm.__call__
    monkeypatch.setattr(Norm, "__call__", lambda self, x: real(self, x) * 1.001)
    out = tmp_path / "out.json"
    result = command("harness", "certify", "--model", "tiny-llama", "--out", out)
    assert result.status == 1 and "no certificate is written" in result.err
    assert not out.exists() and not list(certificates.glob("*.json"))


def leaves(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from leaves(inner, (*path, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
BELIEVED = ("schema", "verdict", "candidate", "dtypes", "subject", "date", "expires")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nothing_written_into_one_breaks_the_reader(written, tmp_path_factory, data):
    content = json.loads(written)
    path = data.draw(st.sampled_from(sorted(leaves(content), key=str)))
    value, inner = data.draw(JSON), content
    for key in path[:-1]:
        inner = inner[key]
    same = inner[path[-1]] == value
    inner[path[-1]] = value
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "c.json").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_PARITY_CERTIFICATES", str(folder))
        found = standing(find_model("tiny-llama"))
    assert found.proven == (not found.reasons)
    if path[0] in BELIEVED and not same:
        assert not found.proven
