"""`engine gpu-info`, and the names under which certificates know a machine."""

from __future__ import annotations

import json
import platform

import mlx.core as mx
import pytest

from engine import machine
from engine.runtime import device_class


def test_gpu_info_shows_device_memory_versions_and_pins(command):
    shown = command("engine", "gpu-info")
    assert shown.status == 0
    known = json.loads(command("engine", "gpu-info", "--json").out)
    assert known["device"] in ("cpu", "metal", "cuda")
    assert known["versions"]["mlx"] == mx.__version__
    assert any(name.startswith("mlx-") for name in known["versions"])
    assert known["memory"]["total"] >= known["memory"]["available"] > 0
    assert known["pins"]["tf32"] in ("on", "off")
    for text in (known["name"], known["device_class"], mx.__version__, "TF32"):
        assert text in shown.out


def test_tf32_that_is_on_is_shown(command, monkeypatch):
    monkeypatch.setenv("MLX_ENABLE_TF32", "1")
    assert "TF32                 on" in command("engine", "gpu-info").out.replace(
        "  ", " " * 2
    ) or ("on: MLX_ENABLE_TF32" in command("engine", "gpu-info").out)


@pytest.mark.parametrize(
    ("name", "expected"), [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("aarch64", "arm64")]
)
def test_processors_have_one_name_each(monkeypatch, name, expected):
    monkeypatch.setattr(platform, "machine", lambda: name)
    assert device_class("cpu") == f"cpu-{expected}"


def test_a_gpu_is_named_as_mlx_names_it(monkeypatch):
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "NVIDIA H100 80GB HBM3"})
    assert device_class("cuda") == "cuda-nvidia-h100-80gb-hbm3"


def test_memory_is_what_the_container_leaves(monkeypatch, tmp_path):
    free = machine.available_memory()
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000")
    (tmp_path / "memory.max").write_text("max")
    assert machine.available_memory() > 5000
    (tmp_path / "memory.max").write_text("6000")
    assert machine.available_memory() == 5000 < free


@pytest.mark.parametrize(
    ("count", "shown"), [(5, "5 B"), (2048, "2.0 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes_are_readable(count, shown):
    assert machine.size(count) == shown
