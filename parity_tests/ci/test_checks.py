"""ci/checks.py: what is run, and that the judges refuse what is not what a leg asks for."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import checks
import models
import pytest
from checks import Place, Wrong, compared, generated
from matrix import LEGS, by_name

CPU, METAL = by_name("linux-x64"), by_name("macos-15-metal")
PINNED = checks.mlx_version("pinned")
LOG = "prompt: 6 tokens, 9.0 tokens/s\ndecode: 10 tokens, 601.6 tokens/s\nbackend=mlx device=cpu\n"


def seen(kind: str = "cpu", table: str = "cpu-x86_64", mlx: str = PINNED, calibrated: bool = True):
    return {
        "environment": {"device": {"kind": kind}, "packages": {"mlx": mlx}},
        "calibration": {
            "source": f"/tables/{table}.json",
            "device_class": table,
            "calibrated": calibrated,
        },
        "checks": [{"verdict": "pass"}, {"verdict": "skip"}],
    }


def steps(leg: str, check: str) -> list[checks.Step]:
    return list(checks.CHECKS[check](Place(by_name(leg), Path("/out"), here=True)))


def test_a_leg_is_judged_on_its_device_with_its_mlx_by_its_limits():
    assert "1 checks pass" in compared(seen(), CPU)
    assert compared(seen(calibrated=False), CPU)  # the CPU's limits hold on every CPU
    assert compared(seen("metal", "metal-apple-m1"), METAL)
    newest = dataclasses.replace(CPU, mlx="newest")
    assert compared(seen(mlx="9.9.9"), newest)


@pytest.mark.parametrize(
    ("leg", "verdict", "message"),
    [
        (CPU, seen("metal"), "ran on metal, not on cpu"),
        (METAL, seen("cpu"), "ran on cpu, not on metal"),
        (CPU, seen(mlx="0.30.0"), "ran with mlx 0.30.0"),
        (CPU, seen(table="cuda-nvidia"), "by the limits of cuda-nvidia.json, not of cpu"),
        (METAL, seen("metal", "cpu-x86_64"), "not of metal"),
        (METAL, seen("metal", "metal-apple-m1", calibrated=False), "is not calibrated"),
    ],
)
def test_anything_else_is_wrong(leg, verdict, message):
    with pytest.raises(Wrong, match=message):
        compared(copy.deepcopy(verdict), leg)


def test_ten_tokens_with_a_speed_are_a_smoke_test():
    assert generated(LOG, "cpu") == "backend=mlx device=cpu, decode: 10 tokens, 601.6 tokens/s"
    assert generated(LOG.replace("601.6", "1,601.6"), "cpu")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("backend=mlx", "backend=torch", "does not show backend=mlx"),
        ("601.6", "0.0", "a speed above zero"),
        ("601.6 tokens/s", "too quick to tell", "a speed above zero"),
        ("decode: 10", "decode: 3", "10 tokens"),
        ("device=cpu", "device=metal", "ran on metal, not on cpu"),
    ],
)
def test_less_is_none(old, new, message):
    with pytest.raises(Wrong, match=message):
        generated(LOG.replace(old, new), "cpu")


def test_the_smoke_test_has_a_minute():
    found = steps("linux-x64", "smoke")
    assert max(step.seconds for step in found) <= 60
    assert "convert" in found[0].command and any("model.npz" in part for part in found[0].command)


def test_metal_is_asserted_before_anything_is_judged():
    device, limits, *rest = steps("macos-15-metal", "parity-metal")
    assert device.judge is not None and "ci.limits" in limits.command
    assert device.judge("Device(gpu, 0) True\n")
    for log in ("Device(cpu, 0) True\n", "Device(gpu, 0) False\n"):  # no Metal: CUDA
        with pytest.raises(Wrong, match="is not Metal's GPU"):
            device.judge(log)
    assert all("gpu" in step.command for step in rest)
    assert all("gpu" not in step.command for step in steps("macos-15-cpu", "parity-cpu"))


def test_oldest_is_the_bound_of_the_project_and_is_put_before_the_environment():
    assert checks.mlx_version("oldest") == "0.30.0" and checks.mlx_version("newest") == ""
    place = Place(by_name("linux-x64-oldest"), Path("/out"), here=True)
    *_, install = checks.set_up(place)
    assert "mlx==0.30.0" in install.command and "/out/mlx" in install.command
    assert [s.name for s in checks.set_up(Place(CPU, Path("/out")))] == ["environment"]
    for name in ("docs", "wheels"):
        assert list(checks.set_up(Place(by_name(name), Path("/out")))) == []


def test_ray_is_put_beside_the_environment_at_its_pin():
    place = Place(by_name("cluster"), Path("/out"), here=True)
    *_, install = checks.set_up(place)
    assert "ray[client]" in install.command and "constraints.txt" in install.command
    assert checks.beside(place) == [Path("/out/ray")] and "/out/ray" in install.command
    assert checks.beside(Place(CPU, Path("/out"))) == []


def test_a_test_of_the_cluster_that_is_skipped_is_none():
    (step,) = steps("cluster", "cluster")
    assert (
        step.judge is not None and step.judge("...\n18 passed in 90.1s\n") == "18 passed in 90.1s"
    )
    for log in ("1 skipped in 0.1s\n", "17 passed, 1 skipped in 80.0s\n", ""):
        with pytest.raises(Wrong, match="not every test ran"):
            step.judge(log)


def test_without_here_every_step_runs_in_the_environment_that_ci_makes():
    for leg in LEGS:
        place = Place(leg, Path("/out"))
        for check in leg.checks:
            for step in checks.CHECKS[check](place):
                script = Path(step.command[1]).name
                assert script in ("environment.py", "docs.py", "wheels.py", "run"), step


def test_real_models_are_pinned_to_commits():
    assert all(re.fullmatch(r"[0-9a-f]{40}", model.revision) for model in models.MODELS)
    shown = steps("models-linux", "models")
    assert all(m.revision in s.command for m, s in zip(models.MODELS, shown, strict=True))
    assert len({model.family for model in models.MODELS}) == len(models.MODELS)
