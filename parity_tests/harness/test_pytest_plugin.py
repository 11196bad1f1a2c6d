"""The pytest plugin in a project of others: a wheel, an environment of its own, tests of a port.

The packages are those of this environment, by a .pth file: nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

PORT = """
def logits(tokens):
    import mlx.core as mx
    from mlx_lm.utils import load_model
    from pathlib import Path
    if not hasattr(logits, "model"):
        logits.model, _ = load_model(Path("model"))
    return logits.model(mx.array([tokens]))

def wrong(tokens):
    return logits(tokens) * 1.001

def broken(tokens):
    return {}[tokens[0]]
"""
TESTS = """
import port

def test_right(parity):
    assert parity.check("model", candidate=port.logits, reference="torch").verdict == "pass"

def test_wrong(parity):
    parity.check("model", candidate=port.wrong, reference="torch", checks=["logits"])

def test_part(parity):
    parity.check("model", candidate=port.logits, checks=["logits"])

def test_wrong_at_both(parity):
    parity.check("model", candidate=port.wrong, dtype="bfloat16", checks=["logits"])

def test_wrong_here(parity):
    parity.check("model", candidate=lambda tokens: port.wrong(tokens), checks=["logits"])

def test_broken(parity):
    parity.check("model", candidate=port.broken)

def test_no_model(parity):
    parity.check("no-such-model", candidate=port.logits)

def test_odd_option(parity):
    parity.check("model", candidate=port.logits, checks=["blocs"])

def test_plain():
    pass
"""
# Without torch as far as the plugin can see, and with what was imported told at the end.
CONFTEST = """
import os, sys

def pytest_configure(config):
    if os.environ.get("NO_TORCH"):
        import harness.sides
        harness.sides.installed = lambda *names: "torch" not in names

def pytest_sessionfinish():
    known = {"harness.pytest_plugin", "harness.judge", "mlx", "torch", "transformers"}
    print("LOADED", *sorted(known & set(sys.modules)))
"""


class Project:
    """A folder of others, and the Python of its environment."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self._python = folder, python

    def pytest(self, *arguments: str, **variables: str) -> tuple[int, str]:
        command = [str(self._python), "-m", "pytest", "-p", "no:schemathesis", *arguments]
        cleared = ("PYTHONPATH", "MLX_ENABLE_TF32", "PYTEST_ADDOPTS", "COLUMNS")
        environment = {k: v for k, v in os.environ.items() if k not in cleared} | variables
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def project(wheel, tmp_path_factory) -> Project:
    root = tmp_path_factory.mktemp("outside")
    venv.create(root / "venv", with_pip=False)
    python = root / "venv" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = root / "venv" / "lib" / version / "site-packages"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    subprocess.run(
        [*install, "--no-index", "--no-compile", str(wheel.filename)],
        check=True, capture_output=True,
    )  # fmt: skip
    (packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    folder = root / "project"
    (folder / "tests").mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\nstrict = true\n")
    (folder / "port.py").write_text(PORT)
    (folder / "tests" / "test_port.py").write_text(TESTS)
    (folder / "conftest.py").write_text(CONFTEST)
    shutil.copytree(root / "venv" / "share/mlx-parity/golden/models/tiny-llama", folder / "model")
    weights = load_file(folder / "model" / "model.safetensors")
    weights["model.norm.weight"] *= 1.25  # so that no golden that is shipped is of this model
    save_file(weights, folder / "model" / "model.safetensors")
    return Project(folder, python)


def test_nothing_heavy_is_imported_until_a_check_is_asked_for(project):
    status, out = project.pytest("--collect-only", "-q")
    assert status == 0 and "9 tests collected" in out
    assert "LOADED harness.pytest_plugin\n" in out
    status, out = project.pytest("-q", "-k", "test_plain")
    assert status == 0 and "LOADED harness.pytest_plugin\n" in out


def test_a_port_passes_and_its_faults_are_told(project):
    status, out = project.pytest("-q", "--parity-json", "json", "--parity-html", "html")
    assert status == 1 and "3 passed" in out and "6 failed" in out, out
    assert "model: wrong against torch, float32: FAIL: parity does not hold" in out
    assert "first divergence: logits: the logits (lm_head) is" in out
    assert "likely cause: the logits are off" in out
    assert "logits" in out.split("error/noise")[1].splitlines()[1]
    assert "this test again: pytest tests/test_port.py::test_wrong" in out
    assert (
        "without pytest: harness compare --model model --reference torch --checks logits "
        "--candidate python:port:wrong"
    ) in out
    assert "python:test_port" not in out  # a function of a file of tests has no such name
    assert "return {}[tokens[0]]" in out and "KeyError" in out
    assert "no-such-model" in out and "did you mean blocks?" in out
    assert "judge.py" not in out  # no traceback through the harness
    assert "LOADED harness.judge harness.pytest_plugin mlx" in out
    reports = list((project.folder / "json").iterdir())
    verdicts = [json.loads(path.read_text())["verdict"] for path in reports]
    assert sorted(verdicts) == ["error"] * 3 + ["fail"] * 3 + ["pass"] * 2
    pages = {path.stem for path in (project.folder / "html").iterdir()}
    assert pages == {path.stem for path in reports}
    assert any("test_wrong_here" in page for page in pages)


def test_without_reference_and_golden_a_test_is_skipped_with_the_reason(project):
    status, out = project.pytest("-q", "-rs", "-k", "test_part or test_wrong_here", NO_TORCH="1")
    assert status == 0 and "2 skipped" in out and "passed" not in out, out
    assert "no golden of model from torch at float32" in out and "--parity-update" in out


def test_goldens_are_recorded_and_then_used(project):
    ini = project.folder / "pytest.ini"
    ini.write_text(ini.read_text() + "parity_goldens = recorded\n")
    status, out = project.pytest("-q", "-k", "test_part", "--parity-update")
    assert status == 0 and "1 passed" in out, out
    manifest = json.loads((project.folder / "recorded" / "MANIFEST.json").read_text())
    (entry,) = manifest["goldens"]
    assert (entry["model"], entry["reference"], entry["dtype"]) == ("model", "torch", "float32")
    assert entry["command"] == "pytest tests/test_port.py::test_part --parity-update"
    # A failure at float32 is one, though there is no golden at bfloat16.
    status, out = project.pytest("-q", "-k", "test_part or test_wrong_at_both", NO_TORCH="1")
    assert status == 1 and "1 passed" in out and "1 failed" in out, out
    assert "against golden:torch" in out and "no golden of model from torch at bfloat16" in out
    assert "first divergence: logits" in out
