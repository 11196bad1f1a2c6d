"""`harness compare` as users run it: exit status, one line for bad input, JSON, terminal."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_passing_model_is_exit_0_and_fits_100_columns(command, golden_model, tmp_path):
    out = tmp_path / "verdict.json"
    result = command("harness", "compare", "--model", golden_model, "--json", out)
    assert result.status == 0, result.err
    assert "PASS: parity holds" in result.out
    for name in ("environment", "weights", "tokens", "blocks", "logits", "greedy", "cache"):
        assert name in result.out
    assert max(len(line.rstrip()) for line in result.out.splitlines()) <= 100
    document = json.loads(out.read_text())
    assert document["schema"] == "harness.verdict/1" and document["verdict"] == "pass"
    assert document["first_divergence"] is None and document["diagnosis"] is None


def test_the_verdict_keeps_its_contract(command, tiny_llama, tmp_path):
    out = tmp_path / "verdict.json"
    command("harness", "compare", "--model", tiny_llama, "--json", out, "--dtype", "bfloat16")
    document = json.loads(out.read_text())
    keys = "schema verdict model candidate reference dtype device first_divergence diagnosis"
    keys += " checks sites environment seconds peak_memory_bytes"
    assert set(keys.split()) <= set(document)
    assert document["dtype"] == "bfloat16" and document["peak_memory_bytes"] > 1e6
    site = "site block kind mode probe error noise ratio limit verdict dtype"
    for entry in document["sites"]:
        assert set(site.split()) <= set(entry)
        assert entry["ratio"] == pytest.approx(entry["error"] / entry["noise"])
        assert (entry["verdict"] == "pass") == (entry["ratio"] <= entry["limit"])
    assert {entry["dtype"] for entry in document["sites"]} == {"float32", "bfloat16"}
    assert {entry["mode"] for entry in document["sites"]} == {"isolated", "propagated"}
    for entry in document["checks"]:
        assert {"name", "verdict", "reason", "measures"} <= set(entry)
    assert all(map(math.isfinite, _numbers(document)))


def test_a_failing_candidate_is_exit_1_with_the_place(command, tiny_llama, tmp_path, monkeypatch):
    _module(tmp_path, monkeypatch, "wrong", "return reference(tokens) * 1.001")
    out = tmp_path / "verdict.json"
    result = command(
        *("harness", "compare", "--model", tiny_llama, "--reference", "golden"),
        *("--candidate", "python:wrong:logits", "--json", out),
    )
    assert result.status == 1
    assert "FAIL: parity does not hold" in result.out and "first divergence: logits" in result.out
    first = json.loads(out.read_text())["first_divergence"]
    assert first["check"] == "logits" and first["ratio"] > first["limit"]
    assert first["site"] == "lm_head" and first["block"] is None and first["message"]


def test_a_right_function_passes_and_says_what_it_cannot_show(
    command, tiny_llama, tmp_path, monkeypatch
):
    _module(tmp_path, monkeypatch, "right", "return reference(tokens)")
    result = command(
        *("harness", "compare", "--model", tiny_llama, "--reference", "golden"),
        *("--candidate", "python:right:logits"),
    )
    assert result.status == 0, result.out
    assert "no parameter `tap`" in result.out


def test_without_an_oracle_the_answer_is_inconclusive(command, tiny_llama, monkeypatch):
    monkeypatch.setattr("harness.sides.installed", lambda *names: False, raising=True)
    result = command("harness", "compare", "--model", tiny_llama, "--reference", "mlx-lm")
    assert result.status == 3
    assert "INCONCLUSIVE" in result.out and "no oracle" in result.out


def test_chosen_checks_are_the_only_ones_asked(command, tiny_llama, tmp_path):
    out = tmp_path / "verdict.json"
    command(
        "harness", "compare", "--model", tiny_llama, "--checks", "weights,tokens", "--json", out
    )
    assert [c["name"] for c in json.loads(out.read_text())["checks"]] == ["weights", "tokens"]


def test_prompts_become_probes(command, tiny_llama, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "verdict.json"
    prompts.write_text("import os\n[0, 5, 7]\n")
    result = command(
        *("harness", "compare", "--model", tiny_llama, "--prompts", prompts, "--json", out),
        *("--checks", "blocks"),
    )
    assert result.status == 0
    probes = {site["probe"] for site in json.loads(out.read_text())["sites"]}
    assert {"prompt 1", "prompt 2"} <= probes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere"], ["'nowhere'", "tiny-llama"]),
        (["--model", "tiny-llama", "--candidate", "enginx"], ["'enginx'", "engine"]),
        (["--model", "tiny-llama", "--reference", "gold"], ["'gold'", "golden"]),
        (["--model", "tiny-llama", "--dtype", "float64"], ["'float64'", "bfloat16"]),
        (["--model", "tiny-llama", "--device", "gpu"], ["gpu", "--device cpu"]),
        (["--model", "tiny-llama", "--checks", "blocs"], ["'blocs'", "blocks"]),
        (["--model", "tiny-llama", "--candidate", "python:no.such:f"], ["no.such"]),
        (["--model", "tiny-llama", "--candidate", "python:json:nothing"], ["'nothing'"]),
        (["--model", "tiny-llama", "--candidate", "python:os:getenv"], ["python:os:getenv raised"]),
        (["--model", "tiny-llama", "--candidate", "golden"], ["golden", "reference"]),
        (["--model", "tiny-llama", "--reference", "golden:engine"], ["engine", "golden record"]),
        (["--model", "tiny-llama", "--reference", "golden", "--dtype", "float16"], ["float16"]),
        (["--model", "tiny-llama", "--prompts", "/no/such"], ["/no/such"]),
        (["--model", "tiny-llama", "--json", "/no/such/file.json"], ["/no/such"]),
        (["--model", "tiny-llama", "--resume", "/no/such/state"], ["--resume", "/no/such"]),
        (["--modle", "x"], ["--modle", "--model"]),
        ([], ["--model"]),
    ],
)
def test_bad_options_are_one_line_and_exit_2(command, arguments, words, monkeypatch):
    import mlx.core as mx

    if "gpu" in arguments and (mx.metal.is_available() or mx.cuda.is_available()):
        pytest.skip("this machine has a GPU")
    result = command("harness", "compare", *arguments)
    assert_one_line(result, words)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", ["is empty"]),
        ("one\n\ntwo\n", ["line 2", "is empty"]),
        ("[1, 2\n", ["line 1", "not a JSON list"]),
        ("[]\n", ["line 1", "no tokens"]),
        ("[1, 100000]\n", ["line 1", "100000", "512"]),
    ],
)
def test_bad_prompts_are_named_with_their_line(command, tiny_llama, tmp_path, lines, words):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(lines)
    result = command("harness", "compare", "--model", tiny_llama, "--prompts", prompts)
    assert_one_line(result, [str(prompts), *words])


def spoil_config(folder):
    (folder / "config.json").write_text("{")


def spoil_type(folder):
    edit(folder, model_type="lama")


def spoil_no_type(folder):
    edit(folder, model_type=None)


def spoil_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def spoil_no_weights(folder):
    (folder / "model.safetensors").unlink()


def spoil_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_shape(folder):
    edit(folder, intermediate_size=100)


def spoil_vocabulary(folder):
    import mlx.core as mx

    weights = mx.load(str(folder / "model.safetensors"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:300]
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    edit(folder, vocab_size=300)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_config, ["config.json", "JSON"]),
        (spoil_type, ["'lama'", "llama"]),
        (spoil_no_type, ["model_type", "config.json"]),
        (spoil_weights, ["model.safetensors"]),
        (spoil_no_weights, ["weights"]),
        (spoil_pickle, ["pytorch_model.bin"]),
        (spoil_shape, ["gate_proj", "shape"]),
        (spoil_vocabulary, ["511", "300"]),
    ],
)
def test_spoilt_models_are_one_line_and_exit_2(command, tiny_llama, tmp_path, spoil, words):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    spoil(folder)
    out = tmp_path / "verdict.json"
    result = command("harness", "compare", "--model", folder, "--json", out)
    assert_one_line(result, words)
    document = json.loads(out.read_text())
    assert document["verdict"] == "error" and document["error"] in result.err


def test_without_torch_the_reference_is_explained(tiny_llama, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('blocked', name='torch')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "harness", "compare", "--model", str(tiny_llama)]
    run = subprocess.run(
        [*command, "--reference", "torch"], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 2 and run.stdout == ""
    assert "torch" in run.stderr and "pip install" in run.stderr
    assert "--reference golden" in run.stderr and len(run.stderr.splitlines()) == 1


def test_debug_shows_the_traceback(command):
    from engine.errors import ModelNotFound

    with pytest.raises(ModelNotFound):
        command("harness", "compare", "--model", "nowhere", "--debug")


def assert_one_line(result, words):
    assert result.status == 2, result.out + result.err
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("harness: "), result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0], lines[0]


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def _module(folder: Path, monkeypatch, name: str, body: str) -> None:
    """A module of the user's: our own engine behind a plain function."""
    (folder / f"{name}.py").write_text(
        "import mlx.core as mx\nimport numpy as np\nfrom engine.model import load\n"
        "decoder = load('tiny-llama', dtype='float32').decoder\n"
        "def reference(tokens):\n    return np.array(decoder(mx.array([tokens]))[0])\n"
        f"def logits(tokens):\n    {body}\n"
    )
    monkeypatch.syspath_prepend(folder)


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def test_pickles_are_read_only_when_asked_for_by_name(command, tiny_llama, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    arguments = ("harness", "compare", "--model", folder, "--candidate", "torch:sdpa")
    assert_one_line(command(*arguments), ["pytorch_model.bin", "pickle"])
    assert_one_line(command(*arguments, "--allow", "pickles"), ["'pickles'", "pickle"])
    assert command(*arguments, "--allow", "pickle", "--checks", "blocks,logits").status == 0
    engine = command("harness", "compare", "--model", folder, "--allow", "pickle")
    assert_one_line(engine, ["pytorch_model.bin"])


def test_remote_code_is_run_only_when_asked_for_by_name(command, tiny_llama, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    edit(
        folder,
        model_type="mine",
        auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    )
    (folder / "mine.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'mine'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    arguments = ("harness", "compare", "--model", folder, "--candidate", "torch:sdpa")
    assert_one_line(command(*arguments), ["auto_map", "--allow remote-code"])
    assert not list(tmp_path.rglob("ran"))
    allowed = command(*arguments, "--allow", "remote-code", "--checks", "blocks,logits")
    assert allowed.status == 0, allowed.err + allowed.out
