"""ci/compare.py and action.yml: a comparison for another repository, with no way into a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import compare
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
PORT = "import numpy as np\ndef logits(tokens):\n    return np.zeros((len(tokens), 512), 'f')\n"


def test_the_inputs_are_the_variables():
    step = ACTION["runs"]["steps"][-1]
    inputs = {name: f"${{{{ inputs.{name} }}}}" for name in ACTION["inputs"]}
    variables = {f"PARITY_{name.upper()}": value for name, value in inputs.items()}
    assert set(variables) == set(compare.OPTIONS.values())
    assert step["env"] == {"PYTHON": "${{ steps.python.outputs.python-path }}", **variables}


def test_no_expression_stands_in_a_command():
    assert all("${{" not in step.get("run", "") for step in ACTION["runs"]["steps"])


@pytest.mark.parametrize("value", ["--json=x", "$(touch x)", "a b", "'; rm x"])
def test_a_value_is_one_word_of_its_own_option(value):
    line = compare.command({"PARITY_MODEL": value, "PARITY_REFERENCE": ""}, Path("r.json"))
    assert line[-1] == f"--model={value}" and line[-2] == "--json=r.json"


@pytest.fixture
def action(tmp_path, monkeypatch):
    """What the action does, in a repository that holds a port; the environment is this one."""
    stand_in = tmp_path / "environment.py"
    stand_in.write_text(
        "import subprocess, sys\nfrom harness.__main__ import main\n"
        "sys.argv = sys.argv[1:]\nmain()\n"
    )
    start = f"import sys; from pathlib import Path; sys.path.insert(0, {str(ROOT / 'ci')!r})\n"
    start += f"import compare; compare.ENVIRONMENT = Path({str(stand_in)!r})\n"
    start += "sys.exit(compare.main())"
    (tmp_path / "port.py").write_text(PORT)

    def run(**inputs: str) -> tuple[int, str, str]:
        files = {name: str(tmp_path / name) for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUNNER_TEMP": str(tmp_path)}
        environment |= {f"PARITY_{name.upper()}": value for name, value in inputs.items()} | files
        done = subprocess.run([sys.executable, "-c", start], env=environment, cwd=tmp_path)
        texts = [Path(file).read_text() if Path(file).exists() else "" for file in files.values()]
        return done.returncode, texts[0], texts[1]

    return run


def test_a_port_of_the_caller_is_judged_and_its_page_written(action, tmp_path):
    model = str(ROOT / "golden" / "models" / "tiny-llama")
    status, page, outputs = action(
        model=model, candidate="python:port:logits", reference="golden", dtype="float32"
    )
    assert status == 1 and "verdict=fail" in outputs
    assert "`parity`: FAIL" in page and "**First divergence**" in page and "port.py:2" in page
    assert json.loads((tmp_path / "parity.json").read_text())["verdict"] == "fail"


def test_bad_inputs_are_an_error_with_a_page(action):
    assert action(model="") == (2, "", "")
    status, page, outputs = action(model="/nonexistent/model", reference="golden")
    assert status == 2 and "verdict=error" in outputs and "ERROR" in page
