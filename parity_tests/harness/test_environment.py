"""Where float32 is not float32 nothing is judged at float32, whatever checks were asked for."""

from __future__ import annotations

import json

import pytest

from harness.checks import environment as check
from harness.environment import describe, product_error


def test_products_here_are_float32():
    assert 1e-8 < product_error() < 1e-6


@pytest.mark.parametrize("checks", [None, "blocks,logits"])
def test_tf32_refuses_the_float32_rung(command, tiny_llama, tmp_path, monkeypatch, checks):
    """2.9e-4 is what an H100 gives with MLX_ENABLE_TF32=1."""
    monkeypatch.setattr(check, "product_error", lambda: 2.9e-4)
    out = tmp_path / "verdict.json"
    asked = ["--checks", checks] if checks else []
    result = command("harness", "compare", "--model", tiny_llama, "--json", out, *asked)
    assert result.status == 2
    assert "MLX_ENABLE_TF32=0" in result.err and len(result.err.splitlines()) == 1
    document = json.loads(out.read_text())
    assert document["verdict"] == "error" and document["sites"] == []
    assert [c["name"] for c in document["checks"]] == ["environment"]


def test_the_pin_is_set_before_mlx_is_imported():
    import os
    import subprocess
    import sys

    code = "import harness, os, sys; print(os.environ['MLX_ENABLE_TF32'], 'mlx' in sys.modules)"
    environment = {k: v for k, v in os.environ.items() if k != "MLX_ENABLE_TF32"}
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert run.stdout.split() == ["0", "False"]


def test_what_moves_numbers_is_described():
    found = describe()
    assert found["packages"]["mlx"] and found["device"]["kind"] in ("cpu", "cuda", "metal")
    assert json.loads(json.dumps(found)) == found


def test_an_mlx_that_names_no_device_is_described_all_the_same(monkeypatch):
    """The oldest that is supported has no `device_info` outside `mx.metal`."""
    import mlx.core as mx

    assert describe()["device"]["name"] != "unknown"
    monkeypatch.delattr(mx, "device_info")
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert describe()["device"]["name"] == "unknown"
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.metal, "device_info", lambda: {"device_name": "Apple M1"})
    assert describe()["device"]["name"] == "Apple M1"
