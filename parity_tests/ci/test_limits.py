"""ci/limits.py: a GPU is calibrated once, where its limits are kept."""

from __future__ import annotations

import subprocess

import limits
import pytest


@pytest.fixture
def calls(monkeypatch, tmp_path):
    made = []
    monkeypatch.setenv("MLX_PARITY_LIMITS", str(tmp_path / "limits"))
    monkeypatch.setattr(
        limits.subprocess,
        "run",
        lambda command: made.append(command) or subprocess.CompletedProcess(command, 3),
    )
    return made


def test_a_class_with_limits_is_left_alone(calls, monkeypatch, capsys):
    monkeypatch.setattr("harness.environment.device_class", lambda device: "cpu-x86_64")
    assert limits.main() == 0 and calls == []
    assert "limits of cpu-x86_64 are there" in capsys.readouterr().out


def test_a_class_without_is_calibrated_on_the_gpu(calls, monkeypatch, tmp_path):
    monkeypatch.setattr("harness.environment.device_class", lambda device: "metal-apple-m1")
    assert limits.main() == 3
    command = calls[0]
    assert command[command.index("--device") + 1] == "gpu"
    assert command[-1] == str(tmp_path / "limits" / "metal-apple-m1.results")
    assert (tmp_path / "limits").is_dir()
