"""Workflows, action, Dependabot: of GitHub's schemas, clean by zizmor, calling ci/ alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import matrix
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
# As text throughout: YAML takes the key `on` for a truth value.
WORKFLOWS = {p.stem: yaml.load(p.read_text(), yaml.BaseLoader) for p in FOLDER.glob("*.yml")}
JOBS = {(w, j): job for w, flow in WORKFLOWS.items() for j, job in flow["jobs"].items()}
FILES = [*FOLDER.glob("*.yml"), ROOT / "action.yml"]
CALLS = re.compile(r'(python3 ci/\w+\.py( "\$\w+"| [\w./-]+)*( >> "\$GITHUB_OUTPUT")?)')


def schema(name: str, *files: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("check_jsonschema", reason="brings GitHub's schemas")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", name]
    return subprocess.run([*command, *map(str, files)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("vendor.github-workflows", list(FOLDER.glob("*.yml"))),
        ("vendor.github-actions", [ROOT / "action.yml"]),
        ("vendor.dependabot", [ROOT / ".github" / "dependabot.yml"]),
    ],
)
def test_files_are_of_githubs_schemas(name, files):
    done = schema(name, *files)
    assert done.returncode == 0, done.stdout


def test_the_schema_finds_a_wrong_key(tmp_path):
    wrong = tmp_path / "ci.yml"
    wrong.write_text((FOLDER / "ci.yml").read_text().replace("runs-on:", "run-on:"))
    assert schema("vendor.github-workflows", wrong).returncode == 1


def zizmor(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("zizmor")  # a program alone: nothing to import
    if not program.exists():
        pytest.skip("zizmor is not installed")
    command = [str(program), "--offline", "--pedantic", "--strict-collection", "--no-progress"]
    command += ["--collect=all", "--format=plain", "--quiet", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    """What zizmor reads, in a folder of its own."""
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    shutil.copy(ROOT / "action.yml", tmp_path)
    return tmp_path


def test_zizmor_has_nothing_to_say(copy):
    done = zizmor(copy)
    assert done.returncode == 0, done.stdout + done.stderr


def test_zizmor_finds_an_injection(copy):
    action = copy / "action.yml"
    text = action.read_text()
    action.write_text(text.replace("/ci/compare.py", '/ci/compare.py" "${{ inputs.model }}'))
    done = zizmor(copy)
    assert done.returncode != 0 and "template-injection" in done.stdout


# What the project asks for beyond them


def steps() -> list[dict]:
    return [step for job in JOBS.values() for step in job.get("steps", [])]


def test_workflows_only_call_scripts_of_ci():
    lines = [step["run"].strip() for step in steps() if "run" in step]
    assert lines and all(CALLS.fullmatch(line) for line in lines)
    for line in lines:
        assert (ROOT / line.split()[1]).is_file()
    assert not CALLS.fullmatch("python3 ci/leg.py x; curl y")


def test_actions_are_pinned_by_full_hash_with_their_version():
    pins = {}
    for file in FILES:
        for line in re.findall(r"uses: (.*)", file.read_text()):
            if line.startswith("$/"):
                continue
            match = re.fullmatch(r"([\w./-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line)
            assert match, line
            name, *version = match.groups()
            assert pins.setdefault(name, version) == version  # one version everywhere
    assert "actions/checkout" in pins


def test_checkouts_keep_no_credentials():
    found = [s for s in steps() if s.get("uses", "").startswith("actions/checkout@")]
    assert found and all(s["with"]["persist-credentials"] == "false" for s in found)


def test_permissions_are_least():
    assert all(flow["permissions"] == {} for flow in WORKFLOWS.values())
    granted = {name: job.get("permissions", {}) for name, job in JOBS.items()}
    assert granted.pop(("release", "publish")) == {"id-token": "write"}
    assert all(given == {"contents": "read"} for given in granted.values())


def test_every_job_has_a_timeout_and_every_workflow_a_group():
    assert all("concurrency" in flow for flow in WORKFLOWS.values())
    groups = [flow["concurrency"]["group"].split("-")[0] for flow in WORKFLOWS.values()]
    assert sorted(groups) == sorted(WORKFLOWS)  # one within another must not wait for it
    for name, job in JOBS.items():
        assert ("timeout-minutes" in job) != ("uses" in job), name


def test_caches_are_keyed_on_what_is_downloaded():
    keys = {
        step["with"]["path"]: step["with"]["key"]
        for step in steps()
        if step.get("uses", "").startswith("actions/cache@")
    }
    assert "constraints.txt" in keys[".cache/pip"]
    assert "ci/models.py" in keys[".cache/huggingface"]
    assert set(keys) == {".cache/pip", ".cache/huggingface", ".cache/limits"}


def test_the_gate_runs_always_and_needs_every_other_job():
    jobs = WORKFLOWS["ci"]["jobs"]
    assert jobs["gate"]["if"] == "always()"
    assert set(jobs["gate"]["needs"]) == set(jobs) - {"gate"}
    assert not any("continue-on-error" in job for job in JOBS.values())


def test_what_is_published_has_passed_the_gate():
    jobs = WORKFLOWS["release"]["jobs"]
    assert jobs["gate"]["uses"] == "$/.github/workflows/ci.yml"
    assert jobs["build"]["needs"] == ["gate"] and jobs["publish"]["needs"] == ["build"]


def test_workflows_and_matrix_agree():
    called = {job["with"]["when"] for job in JOBS.values() if "legs.yml" in job.get("uses", "")}
    assert called == set(matrix.WORKFLOWS)
    plan = JOBS["legs", "plan"]["steps"][-1]
    variables = {leg.variable: f"${{{{ vars.{leg.variable} }}}}" for leg in matrix.LEGS}
    variables.pop("")
    assert plan["env"] == {"WHEN": "${{ inputs.when }}", **variables}
    used = set(re.findall(r"matrix\.leg\.(\w+)", (FOLDER / "legs.yml").read_text()))
    row = matrix.matrix("gate", matrix.date(2026, 11, 25), {})[0]
    assert used == set(row)
    artifact = JOBS["legs", "leg"]["steps"][-1]["with"]["name"]
    assert artifact == "leg-${{ matrix.leg.name }}"


def test_images_outside_the_matrix_are_of_its_table():
    fixed = {job["runs-on"] for job in JOBS.values() if "runs-on" in job}
    assert fixed - {"${{ matrix.leg.runner }}"} <= set(matrix.IMAGES)


def test_machines_of_ones_own_run_nothing_from_pull_requests():
    callers = [w for (w, _), job in JOBS.items() if job.get("with", {}).get("when") == "hardware"]
    assert callers == ["nightly"]
    assert set(WORKFLOWS["nightly"]["on"]) == {"schedule", "workflow_dispatch"}


def test_updates_wait_until_others_have_tried_them():
    text = (ROOT / ".github" / "dependabot.yml").read_text()
    updates = yaml.safe_load(text)["updates"]
    assert {u["package-ecosystem"] for u in updates} == {"github-actions", "pip"}
    assert all(u["cooldown"]["default-days"] >= 7 for u in updates)
