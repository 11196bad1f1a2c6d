"""ci/wheels.py: which pins hold where, and what pip is asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import wheels
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("system", ["darwin", "linux"])
@pytest.mark.parametrize("python", ["3.11", "3.13", "3.14"])
def test_markers_are_read_as_packaging_reads_them(system, python):
    lines = [line.partition("#")[0].strip() for line in CONSTRAINTS.splitlines()]
    pins = [Requirement(line) for line in lines if line]
    here = {"sys_platform": system, "python_version": python}
    wanted = [f"{p.name}{p.specifier}" for p in pins if not p.marker or p.marker.evaluate(here)]
    assert wheels.pins(CONSTRAINTS, system, python) == wanted


def test_macos_asks_for_metal_and_not_for_cuda():
    names = {pin.partition("==")[0] for pin in wheels.pins(CONSTRAINTS, "darwin", "3.13")}
    assert {"mlx", "mlx-metal", "torch"} <= names and not names & {"mlx-cpu", "mlx-cuda-13"}


@pytest.mark.parametrize(
    "marker", ['extra == "x"', 'sys_platform < "a"', 'python_version == "3.1" and x']
)
def test_a_marker_of_another_form_is_refused(marker):
    with pytest.raises(ValueError, match="is not understood"):
        wheels.pins(f"a==1 ; {marker}", "linux", "3.11")


def test_both_macos_that_are_promised_are_asked_for():
    tags = {tag for _, tags in wheels.PLATFORMS.values() for tag in tags}
    assert {"macosx_14_0_arm64", "macosx_15_0_arm64"} <= tags
    assert {"manylinux_2_35_x86_64", "manylinux_2_35_aarch64"} <= tags
    assert not any(tag.startswith("manylinux_2_36") for tag in tags)


def test_pip_installs_nothing_and_builds_nothing():
    asked = []

    def record(command):
        file = Path(command[command.index("--requirement") + 1])
        asked.append((command, file.read_text()))
        return subprocess.CompletedProcess(command, 7)

    assert wheels.resolve("macos-14-arm64", "3.14", ["mlx==1", "numpy==2"], record) == 7
    command, pins = asked[0]
    assert {"--dry-run", "--no-deps", "--only-binary=:all:"} <= set(command)
    assert pins == "mlx==1\nnumpy==2\n"
    assert command[command.index("--platform") + 1] == "macosx_14_0_arm64"
    assert command[command.index("--python-version") + 1] == "3.14"


def test_unknown_platforms_are_answered_with_those_there_are(capsys):
    assert wheels.main(["windows", "3.11"]) == 2
    assert "macos-14-arm64" in capsys.readouterr().err
