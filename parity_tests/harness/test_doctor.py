"""`harness doctor`: what is there is found, what is missing has a line of advice."""

from __future__ import annotations

import json
import sys

import pytest

from harness import doctor


def found(command, status: int = 0) -> dict:
    result = command("harness", "doctor", "--json")
    assert result.status == status and result.err == ""
    document = json.loads(result.out)
    assert document["schema"] == "harness.doctor/1"
    assert document["can_judge"] is (status == 0)
    return document


def finding(document: dict, name: str) -> dict:
    return next(each for each in document["findings"] if each["name"] == name)


def test_this_environment_can_judge(command):
    document = found(command)
    assert {"torch", "mlx-lm", "engine", "golden:torch"} <= set(document["judges"]["references"])
    assert document["judges"]["dtypes"] == ["float32", "bfloat16", "float16"]
    assert "cpu" in document["judges"]["devices"]
    for name in ("mlx", "torch", "TF32", "goldens"):
        assert finding(document, name)["advice"] is None, name


def test_the_terminal_has_a_line_each_and_says_what_can_be_judged(command):
    result = command("harness", "doctor")
    assert result.status == 0
    for word in ("transformers", "TF32", "off", "compiler", "limits", "goldens"):
        assert word in result.out
    assert "this machine can judge" in result.out and "float32, bfloat16, float16" in result.out


def test_without_torch_goldens_are_what_is_left(command, monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda *names: "torch" not in names)
    version = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "torch" else version(name))
    document = found(command)
    assert document["judges"]["references"] == ["golden:mlx-lm", "golden:torch"]
    assert document["judges"]["dtypes"] == ["float32"]
    assert "pip install 'mlx-parity[reference]'" in finding(document, "torch")["advice"]


def test_without_an_oracle_nothing_can_be_judged(command, monkeypatch):
    monkeypatch.setattr(doctor, "installed", lambda *names: False)
    monkeypatch.setattr(doctor, "golden_roots", tuple)
    document = found(command, 2)
    assert document["judges"]["references"] == []
    assert "harness golden record" in finding(document, "goldens")["advice"]
    assert "nothing can be judged here: no references" in command("harness", "doctor").out


def test_tf32_stops_everything(command, monkeypatch):
    monkeypatch.setattr(doctor, "product_error", lambda: 2.9e-4)
    document = found(command, 2)
    assert finding(document, "TF32")["told"].startswith("on: ")
    assert "MLX_ENABLE_TF32=0" in finding(document, "TF32")["advice"]


def test_without_mlx_the_way_out_is_said(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    document = found(command, 2)
    assert "mlx" in finding(document, "MLX")["advice"]
    assert document["judges"] == {"references": [], "dtypes": [], "devices": []}


def test_a_version_that_is_not_the_pinned_one_is_told(command, monkeypatch, tmp_path):
    pins = tmp_path / "constraints.txt"
    pins.write_text("# numpy==9\nnumpy==1.2.3 ; sys_platform != 'none'\n")
    monkeypatch.setattr(doctor, "CONSTRAINTS", pins)
    document = found(command)
    assert finding(document, "numpy")["advice"].endswith("pip install numpy==1.2.3")
    assert finding(document, "mlx")["advice"] is None
    monkeypatch.setattr(doctor, "CONSTRAINTS", tmp_path / "none")
    assert finding(found(command), "numpy")["advice"] is None


@pytest.mark.parametrize(
    ("gpp", "told"),
    [(None, "no g++"), ("echo broken; exit 1", "mx.compile fails"), ("", "mx.compile works")],
)
def test_the_compiler(command, monkeypatch, tmp_path, gpp, told):
    import mlx.core as mx

    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("MLX compiles for the GPU here")
    if gpp != "":
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if gpp else str(tmp_path))
    if gpp:
        fake = tmp_path / "g++"
        fake.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{gpp}\n')
        fake.chmod(0o755)
        monkeypatch.setattr(doctor.os, "getpid", lambda: 4242.5)  # no process before had it
    compiler = finding(found(command), "compiler")
    assert compiler["told"].startswith(told)
    assert (compiler["advice"] is None) is (gpp == "")


def test_goldens_that_cannot_be_read_are_named(command, monkeypatch, tmp_path):
    (tmp_path / "MANIFEST.json").write_text("{")
    monkeypatch.setenv("MLX_PARITY_GOLDENS", str(tmp_path))
    assert str(tmp_path) in finding(found(command), "goldens")["advice"]


def test_a_table_of_another_class_is_told(command, monkeypatch):
    monkeypatch.setattr(doctor, "device_class", lambda device: "metal-apple-m9")
    limits = finding(found(command), "limits")
    assert "not measured here" in limits["told"] and "harness calibrate" in limits["advice"]
