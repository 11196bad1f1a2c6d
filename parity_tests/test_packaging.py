"""What is shipped and how it is set up: wheel, requirements, README, ci/environment.py.

Nothing is installed or downloaded here; the real set-up is what ran these tests.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
COMPARE = "python3 ci/environment.py harness compare --model golden/models/tiny-llama"
TESTS = "python3 ci/environment.py pytest -n auto --dist worksteal"

PLATFORMS = [
    {"sys_platform": system.lower(), "platform_system": system, "platform_machine": machine}
    for system, machine in (("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"))
]


# The wheel


def test_wheel_is_pure_python(wheel):
    assert Path(wheel.filename or "").name == f"mlx_parity-{PROJECT['version']}-py3-none-any.whl"


def test_wheel_holds_packages_and_golden_data(wheel):
    names = set(wheel.namelist())
    for package in ("engine", "harness"):
        source = {p.relative_to(ROOT).as_posix() for p in (ROOT / package).rglob("*.py")}
        assert source <= names
        tables = (ROOT / package / "tables").glob("*.json")
        assert {p.relative_to(ROOT).as_posix() for p in tables} <= names
        assert f"{package}/py.typed" in names
    data = f"mlx_parity-{PROJECT['version']}.data/data/share/mlx-parity/golden/"
    manifest = json.loads(wheel.read(f"{data}MANIFEST.json"))
    for golden in manifest["goldens"]:
        assert data + golden["file"] in names
        assert f"{data}models/{golden['model']}/config.json" in names
    assert not {name.split("/")[0] for name in names} & {"parity_tests", "ci", "benchmarks"}


def test_wheel_has_licence_and_scripts(wheel):
    info = f"mlx_parity-{PROJECT['version']}.dist-info/"
    assert b"Apache License" in wheel.read(f"{info}licenses/LICENSE")
    assert "harness = harness.__main__:main" in wheel.read(f"{info}entry_points.txt").decode()
    assert "mlx_parity = harness.pytest_plugin" in wheel.read(f"{info}entry_points.txt").decode()


# Requirements and constraints


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len(found) == len({canonical(r.name) for r in found}), "a package has two lines"
    return {canonical(r.name): r for r in found}


def needed(platform: dict[str, str]) -> set[str]:
    """Everything that the project with all extras brings, as far as it is installed here."""
    extras = PROJECT["optional-dependencies"]
    todo = [Requirement(line) for line in sum(extras.values(), PROJECT["dependencies"])]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            name = canonical(requirement.name)
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                lines = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            for below in map(Requirement, lines):
                if not below.marker or below.marker.evaluate({**platform, "extra": extra}):
                    todo.append(below)
    return {name for name, _ in seen}


def test_base_requirement_of_mlx_excludes_the_release_that_crashes():
    mlx = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "mlx")
    assert "0.32.1" not in mlx.specifier and "0.29.0" not in mlx.specifier
    assert "0.32.0" in mlx.specifier and "0.32.2" in mlx.specifier


def test_extras_are_those_documented():
    extras = set(PROJECT["optional-dependencies"])
    assert extras == {"cpu", "cuda13", "reference", "serve", "report", "ray", "dev"}


def test_every_constraint_is_one_exact_version_without_build_tag():
    for requirement in pins().values():
        assert re.fullmatch(r"==[0-9][\w.]*", str(requirement.specifier)), requirement
    assert str(pins()["torch"].specifier) == "==2.13.0"
    assert str(pins()["mlx"].specifier) != "==0.32.1"


@pytest.mark.parametrize(
    "platform", PLATFORMS, ids=lambda p: f"{p['sys_platform']}-{p['platform_machine']}"
)
def test_constraints_cover_everything_every_extra_brings(platform):
    covered = {
        name for name, pin in pins().items() if not pin.marker or pin.marker.evaluate(platform)
    }
    assert needed(platform) - covered == set()


def test_this_environment_is_that_of_the_constraints():
    """Goldens and limits were measured with these versions."""
    wrong = {}
    for name, pin in pins().items():
        try:
            installed = Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed.public not in pin.specifier:
            wrong[name] = f"{installed}, not {pin.specifier}"
    assert wrong == {}


# The engine stands alone

FOREIGN = {"harness", "torch", "transformers", "mlx_lm", "parity_tests"}
MAY = {"torch_backend.py": {"torch", "transformers"}}  # in functions: see the test after next


def test_engine_imports_nothing_foreign():
    for path in sorted((ROOT / "engine").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            roots = {name.split(".")[0] for name in names}
            assert not roots & FOREIGN - MAY.get(path.name, set()), f"{path}:{node.lineno}"


def test_engine_imports_without_the_foreign():
    code = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({sorted(FOREIGN)}))
import engine
for module in pkgutil.walk_packages(engine.__path__, "engine."):
    importlib.import_module(module.name)
for name in engine.__all__:
    getattr(engine, name)
print(sum(name.startswith("engine.") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(list((ROOT / "engine").rglob("*.py"))) - 1


# README and CI


def commands() -> list[str]:
    """Lines of the README's blocks of commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def test_readme_has_the_two_commands_first():
    assert [line for line in commands() if line.startswith("python3 ")] == [COMPARE, TESTS]
    assert (ROOT / COMPARE.split()[-1] / "config.json").is_file()


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and line[0] != "#"]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', f'exec {TESTS} "$@"']


def test_readme_ends_with_the_tree_of_the_folders():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    parents = [Path(name).parts[:-1] for name in listed.stdout.split("\0") if name]
    folders = {
        "/".join(parts[:depth]) for parts in parents for depth in (1, 2) if parts[depth - 1 :]
    }

    assert README.endswith("```\n")
    shown, top = [], ""
    for line in README.rstrip().removesuffix("```").rpartition("```text\n")[2].splitlines():
        match = re.fullmatch(r"( {2})?([\w.]+)/ {2,}\S.*", line)
        assert match, f"no folder with its annotation: {line!r}"
        top = top if match[1] else match[2]
        shown.append(f"{top}/{match[2]}" if match[1] else top)
    assert shown == sorted(folders)


# ci/environment.py


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The script as a module, its paths in an empty folder, pip replaced by a record of calls."""
    path = ROOT / "ci" / "environment.py"
    specification = importlib.util.spec_from_file_location("ci_environment", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    for name in ("ROOT", "VENV", "PYTHON", "STAMP", "UNFINISHED", "LOG", "LOCK", "CONSTRAINTS"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).relative_to(ROOT))
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("")
    monkeypatch.delenv("MLX_PARITY_BUILD", raising=False)
    module.calls = []
    monkeypatch.setattr(module, "pip", lambda *arguments: module.calls.append(arguments))
    return module


def test_environment_is_read_by_an_old_python():
    ast.parse((ROOT / "ci" / "environment.py").read_text(), feature_version=(3, 7))


@pytest.mark.parametrize(
    ("system", "gpus", "glibc", "extra"),
    [
        ("Darwin", [], (), ""),
        ("Linux", [], (2, 36), "cpu"),
        ("Linux", [(580, (9, 0))], (2, 35), "cuda13"),
        ("Linux", [(595, (12, 0)), (595, (7, 5))], (2, 40), "cuda13"),
        ("Linux", [(575, (9, 0))], (2, 36), "cpu"),  # a driver for CUDA 12
        ("Linux", [(580, (7, 0))], (2, 36), "cpu"),  # Volta
        ("Linux", [(580, (9, 0)), (580, (6, 1))], (2, 36), "cpu"),
        ("Linux", [(580, (9, 0))], (2, 31), "cpu"),
        ("Linux", [(580, (9, 0))], (), "cpu"),  # no glibc
    ],
)
def test_build_of_mlx_for_a_machine(environment, system, gpus, glibc, extra):
    assert environment.mlx_extra(system, gpus, glibc) == extra


@pytest.mark.parametrize(
    ("answer", "gpus"),
    [
        ("580.95.05, 9.0\n580.95.05, 12.0\n", [(580, (9, 0)), (580, (12, 0))]),
        ("535.161, 8.6\n", [(535, (8, 6))]),
        ("No devices were found\n", []),
        ("580.95.05, [N/A]\n", []),
        ("", []),
    ],
)
def test_answers_of_nvidia_smi(environment, answer, gpus):
    assert environment.parse_gpus(answer) == gpus


@pytest.mark.parametrize(("asked", "extra"), [("cpu", "cpu"), ("cuda13", "cuda13"), ("none", "")])
def test_build_can_be_asked_for(environment, monkeypatch, asked, extra):
    monkeypatch.setenv("MLX_PARITY_BUILD", asked)
    assert environment.chosen_extra() == extra
    monkeypatch.setenv("MLX_PARITY_BUILD", "metal")
    with pytest.raises(environment.Unusable, match="'metal' is not one of"):
        environment.chosen_extra()


@pytest.mark.parametrize(
    ("version", "fits"),
    [((3, 10), False), ((3, 11), True), ((3, 14), True), ((3, 15), False), ((4, 0), False)],
)
def test_versions_of_python(environment, version, fits):
    assert environment.suitable(version) is fits


@pytest.mark.parametrize(
    ("installed", "extra", "removed"),
    [
        ("numpy", "cpu", []),
        ("mlx mlx-cpu", "cpu", []),
        ("mlx mlx_cpu", "cuda13", ["mlx-cpu"]),
        ("mlx-cpu mlx-cuda-13", "cpu", ["mlx-cpu", "mlx-cuda-13"]),  # they share one file
        ("mlx-cuda-13", "", ["mlx-cuda-13"]),
    ],
)
def test_exactly_one_build_of_mlx(environment, monkeypatch, installed, extra, removed):
    monkeypatch.setattr(environment, "ask", lambda code: installed)
    environment.install(extra)
    uninstalls = [call[2:] for call in environment.calls if call[0] == "uninstall"]
    assert uninstalls == ([tuple(removed)] if removed else [])
    extras = ",".join(filter(None, [extra, "reference", "serve", "report", "dev"]))
    assert environment.calls[-1][-1] == f"{environment.ROOT}[{extras}]"
    assert "--no-build-isolation" in environment.calls[-1]


@pytest.fixture
def made(environment, monkeypatch):
    """`make_ready` once, with a .venv that runs this Python."""

    def make_venv(moved):
        environment.calls.append(("venv", moved))
        environment.PYTHON.parent.mkdir(parents=True, exist_ok=True)
        environment.PYTHON.unlink(missing_ok=True)
        environment.PYTHON.symlink_to(sys.executable)

    monkeypatch.setattr(environment, "make_venv", make_venv)
    monkeypatch.setattr(environment, "ask", lambda code: "")
    monkeypatch.setattr(environment, "nvidia_gpus", list)
    assert not environment.is_ready()
    environment.make_ready()
    return environment


def test_second_run_does_nothing(made):
    assert made.is_ready()
    assert not made.UNFINISHED.exists()


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed(made, name):
    (made.ROOT / name).write_text("changed")
    assert not made.is_ready()


def test_vanished_python_is_noticed(made):
    made.PYTHON.unlink()
    made.PYTHON.symlink_to("/nonexistent/python")
    assert not made.is_ready()


def test_moved_tree_gets_a_new_environment(made, monkeypatch):
    stamp = json.loads(made.STAMP.read_text())
    made.STAMP.write_text(json.dumps({**stamp, "root": "/elsewhere"}))
    assert not made.is_ready()
    made.calls.clear()
    made.make_ready()
    assert made.calls[0] == ("venv", True)


def test_unreadable_stamp_is_as_none(made):
    made.STAMP.write_text("{")
    assert not made.is_ready()


def test_interrupted_installation_is_repaired(made, monkeypatch, capsys):
    packages = made.VENV / "lib" / "python3.11" / "site-packages"
    for name, record in (("whole-1.0.dist-info", True), ("half-1.0.dist-info", False)):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").write_text("")
        if record:
            (packages / name / "RECORD").write_text("")
    (packages / "~old").mkdir()

    def stop(*arguments):
        raise KeyboardInterrupt

    (made.ROOT / "constraints.txt").write_text("changed")
    monkeypatch.setattr(made, "pip", stop)
    with pytest.raises(KeyboardInterrupt):
        made.make_ready()
    assert not made.is_ready()
    monkeypatch.setattr(made, "pip", lambda *arguments: None)
    made.make_ready()
    assert made.is_ready()
    assert [p.name for p in packages.iterdir()] == ["whole-1.0.dist-info"]
    assert "did not finish" in capsys.readouterr().err
