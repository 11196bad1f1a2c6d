"""The folder `harness repro` writes: it runs with mlx and numpy alone, and shows the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import mlx.core as mx
import pytest

from harness.faults import all_faults
from harness.faults._patient import Patient
from harness.judge import comparison_of
from harness.repro import NothingToReproduce, reproduce

BLOCK = 2
ONLY = {"mlx", "numpy", "os", "sys", "pathlib"}


def planted(model, candidate, fault):
    comparison = comparison_of(model, candidate)
    patient = Patient(comparison.candidate, comparison.files.config)
    all_faults()[fault].inject(patient, BLOCK)
    return comparison


def run(script):
    """Isolated from this project: no current folder, no user site, no PYTHONPATH."""
    return subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True)


@pytest.mark.parametrize("candidate", ["engine", "mlx-lm"])
def test_a_wrong_module_is_cut_out_and_runs_by_itself(tiny_llama, candidate, tmp_path):
    script = reproduce(planted(tiny_llama, candidate, "rotary.half-precision"), tmp_path / "out")
    part = json.loads((script.parent / "part.json").read_text())
    assert part["site"].startswith(f"model.layers.{BLOCK}.self_attn")
    assert len(part["tokens"]) == 1, "one token shows it"
    result = run(script)
    assert result.returncode == 1, result.stderr
    ratio = float(re.search(r"ratio ([\d.e+]+)", result.stdout).group(1))
    assert ratio == pytest.approx(part["ratio"], rel=0.01)
    assert ratio > part["limit"]

    text = script.read_text()
    assert len(text.splitlines()) < 40
    assert {m.split(".")[0] for m in re.findall(r"^(?:import|from) (\S+)", text, re.M)} <= ONLY


def test_the_script_is_quiet_once_the_part_is_right(tiny_llama, tmp_path):
    """The same script over the weights of a right module: what it judges is not fixed."""

    def scaled(comparison, factor):
        down = comparison.candidate.model.decoder.blocks[BLOCK].mlp.down
        down.weight = down.weight * factor
        return comparison

    wrong = scaled(comparison_of(tiny_llama), 1.001)
    script = reproduce(wrong, tmp_path / "out")
    assert run(script).returncode == 1
    weights = script.parent / "weights.safetensors"
    right = comparison_of(tiny_llama).candidate.model.decoder.blocks[BLOCK].mlp.down
    named = {"weight.weight": right.weight, "weight.bias": right.bias}
    mx.save_safetensors(str(weights), named)
    result = run(script)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_head_is_cut_out_too(tiny_llama, tmp_path):
    comparison = comparison_of(tiny_llama)
    decoder = comparison.candidate.model.decoder
    decoder.norm.weight = decoder.norm.weight * 1.001
    script = reproduce(comparison, tmp_path / "out")
    assert json.loads((script.parent / "part.json").read_text())["site"] == "model.norm"
    assert run(script).returncode == 1


def test_the_embedding_is_cut_out_with_its_tokens(tiny_llama, tmp_path):
    comparison = comparison_of(tiny_llama)
    embed = comparison.candidate.model.decoder.embed
    embed.weight = embed.weight * 1.001
    script = reproduce(comparison, tmp_path / "out")
    assert set(mx.load(str(script.parent / "input.safetensors"))) == {"tokens"}
    assert run(script).returncode == 1


def test_where_parity_holds_there_is_nothing_to_write(command, tiny_llama, tmp_path):
    with pytest.raises(NothingToReproduce):
        reproduce(comparison_of(tiny_llama), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = command("harness", "repro", "--model", tiny_llama, "--out", tmp_path / "out")
    assert result.status == 2
    assert "nothing" in result.err or "agrees" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_folder_in_use_is_left_alone(command, random_model, tmp_path):
    (tmp_path / "mine").write_text("kept")
    model = random_model("mistral", "window")
    result = command(
        *("harness", "repro", "--model", model, "--candidate", "mlx-lm", "--out", tmp_path)
    )
    assert result.status == 2 and "not empty" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_real_finding_is_reproduced_from_the_command_line(command, random_model, tmp_path):
    model = random_model("mistral", "window")
    out = tmp_path / "out"
    result = command("harness", "repro", "--model", model, "--candidate", "mlx-lm", "--out", out)
    assert result.status == 0, result.err
    script = out / "repro.py"
    assert result.out.strip() == str(script)
    part = json.loads((out / "part.json").read_text())
    assert part["site"] == "model.layers.0.self_attn.context"
    assert len(part["tokens"]) == 9, "one token more than the window of 8"
    assert run(script).returncode == 1
