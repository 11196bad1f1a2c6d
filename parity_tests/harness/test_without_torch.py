"""The gate without PyTorch, transformers or mlx-lm: goldens and traces are all it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = ("torch", "torchgen", "functorch", "transformers", "mlx_lm", "accelerate", "triton")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Every installed package but those, linked into a folder that Python is pointed at alone."""
    folder = tmp_path_factory.mktemp("site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name.split("-")[0].lower() not in ABSENT and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    (folder / "engine").symlink_to(ROOT / "engine")
    (folder / "harness").symlink_to(ROOT / "harness")
    return folder


def run(environment, *arguments):
    """A command in that environment, without the site-packages of the one that runs the tests."""
    variables = {"PYTHONPATH": str(environment), "PATH": os.environ["PATH"], "HOME": "/nowhere"}
    kept = {k: v for k, v in os.environ.items() if k.startswith(("OMP", "MLX", "LD_", "DYLD"))}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        capture_output=True, text=True, env={**variables, **kept}, cwd=ROOT,
    )  # fmt: skip


def test_the_environment_lacks_them(environment):
    """The control: nothing below could pass by finding them after all."""
    for name in ("torch", "transformers", "mlx_lm"):
        done = run(environment, "-c", f"import {name}")
        assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr


@pytest.mark.parametrize("reference", [["--reference", "golden"], []])
@pytest.mark.parametrize("model", ["tiny-llama", "tiny-gemma3", "tiny-gpt2"])
def test_the_engine_is_compared_with_a_golden(environment, tmp_path, model, reference):
    out = tmp_path / "verdict.json"
    done = run(
        environment, "-m", "harness", "compare", "--model", model, *reference, "--json", str(out)
    )
    assert done.returncode == 0, done.stderr
    verdict = json.loads(out.read_text())
    assert verdict["reference"] == "golden" and verdict["verdict"] == "pass"
    packages = verdict["environment"]["packages"]
    assert packages["torch"] is packages["transformers"] is packages["mlx-lm"] is None


def test_a_foreign_trace_is_compared_with_a_golden(environment, tmp_path):
    probes, trace = tmp_path / "probes.safetensors", tmp_path / "trace.safetensors"
    for arguments in (
        ["trace", "--model", "tiny-llama", "--probes", "--out", str(probes)],
        ["trace", "--model", "tiny-llama", "--on", str(probes), "--out", str(trace)],
        ["compare", "--model", "tiny-llama", "--candidate", f"trace:{trace}"],
    ):
        done = run(environment, "-m", "harness", *arguments)
        assert done.returncode == 0, done.stderr


def test_what_needs_torch_says_so_in_one_line(environment):
    for arguments in (["--reference", "torch"], ["--stream", "--reference", "mlx-lm"]):
        done = run(environment, "-m", "harness", "compare", "--model", "tiny-llama", *arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
