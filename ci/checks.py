"""What each check of a leg runs, as steps; and how the output of a step is judged.

A step is one command with a time limit. A check is a function from a `Place` to its steps, found
by name in `CHECKS`. Nothing is run here: `leg.py` does. Standard library only.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix import Leg
from models import MODELS
from wheels import PLATFORMS, PYTHONS

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ("tiny-llama", "tiny-gemma3", "tiny-gpt2")
TOKENS = 10
SMOKE_SECONDS = 60


class Wrong(Exception):
    """The command ended well, and what it says is not what the leg asks for."""


@dataclass(frozen=True)
class Place:
    """Where a leg runs: its row, the folder it writes to, whether in this Python's environment."""

    leg: Leg
    out: Path
    here: bool = False

    @property
    def device(self) -> str:
        """The harness's and the engine's name of the leg's device."""
        return "gpu" if self.leg.device == "metal" else "cpu"

    def python(self, *arguments: object) -> tuple[str, ...]:
        """A command of the environment's Python."""
        if self.here:
            return (sys.executable, *map(str, arguments))
        return (sys.executable, "ci/environment.py", "python", *map(str, arguments))


@dataclass(frozen=True)
class Step:
    """`judge(log)` says in a few words what was seen, or raises Wrong; `report` is a verdict."""

    name: str
    command: tuple[str, ...]
    seconds: int = 1800
    judge: Callable[[str], str] | None = None
    report: Path | None = None


def set_up(place: Place) -> Iterator[Step]:
    """The environment, and beside it what the leg asks for and the environment lacks: another MLX
    than the pinned one, or Ray."""
    if place.leg.checks in (("docs",), ("wheels",)):
        return  # they have environments of their own, or none
    yield Step("environment", place.python("--version"))
    if place.leg.mlx != "pinned":
        build = "mlx-cpu" if sys.platform == "linux" else "mlx-metal"
        version = mlx_version(place.leg.mlx)
        names = [f"{name}=={version}" if version else name for name in ("mlx", build)]
        options = ("--quiet", "--upgrade", "--no-deps", "--target", other_mlx(place))
        yield Step(f"mlx {place.leg.mlx}", place.python("-m", "pip", "install", *options, *names))
    if "cluster" in place.leg.checks:
        options = ("--quiet", "--upgrade", "--constraint", "constraints.txt", "--target")
        install = (*options, ray(place), "ray[client]")
        yield Step("ray", place.python("-m", "pip", "install", *install))


def beside(place: Place) -> list[Path]:
    """What is put beside the environment, and found before it, so that the environment stays
    whole."""
    another = [other_mlx(place)] if place.leg.mlx != "pinned" else []
    return [*another, ray(place)] if "cluster" in place.leg.checks else another


def other_mlx(place: Place) -> Path:
    return place.out / "mlx"


def ray(place: Place) -> Path:
    return place.out / "ray"


def mlx_version(which: str) -> str:
    """The release that oldest or pinned means here, "" for newest, which only pip knows."""
    if which == "pinned":
        pins = (ROOT / "constraints.txt").read_text()
        return re.findall(r"^mlx==(\S+)$", pins, re.MULTILINE)[0]
    if which == "oldest":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        bound = re.match(
            r"mlx>=([\d.]+)", next(d for d in project["dependencies"] if d[:4] == "mlx>")
        )
        assert bound is not None
        return ".".join([*bound[1].split("."), "0", "0"][:3])
    return ""


def lint(place: Place) -> Iterator[Step]:
    yield Step("ruff check", place.python("-m", "ruff", "check", "."))
    yield Step("ruff format", place.python("-m", "ruff", "format", "--check", "."))
    python = Path(sys.executable) if place.here else ROOT / ".venv" / "bin" / "python"
    yield Step("pyright", place.python("-m", "pyright", "--pythonpath", python))


def docs(place: Place) -> Iterator[Step]:
    """The pages as a site, every link followed; the site is left beside the verdict."""
    command = (sys.executable, "ci/docs.py", "--out", str(place.out / "site"))
    yield Step("site", command, judge=_last_line)


def wheels(place: Place) -> Iterator[Step]:
    for platform in PLATFORMS:
        for python in PYTHONS:
            command = (sys.executable, "ci/wheels.py", platform, python)
            yield Step(f"wheels {platform} {python}", command, judge=_last_line)


def tests(place: Place) -> Iterator[Step]:
    """What `.ci/run` runs: the README's test command."""
    options = (f"--junitxml={place.out / 'tests.xml'}",)
    yield Step("tests", ("bash", ".ci/run", *options), judge=_last_line)


def cluster(place: Place) -> Iterator[Step]:
    """Sweeps over a Ray cluster of two nodes on this machine, which `tests` skips."""
    test = ("-m", "pytest", "-n", "0", "-q", "parity_tests/harness/test_ray.py")
    yield Step("cluster", place.python(*test), judge=all_ran)


def parity_cpu(place: Place) -> Iterator[Step]:
    """The golden models on the CPU, by the CPU's limits whatever the machine."""
    for model in GOLDEN:
        yield _compare(place, f"golden/models/{model}")


def parity_metal(place: Place) -> Iterator[Step]:
    """The same on the GPU, by limits calibrated for this GPU."""
    code = "import mlx.core as mx; print(mx.default_device(), mx.metal.is_available())"
    yield Step("device", place.python("-c", code), judge=_is_gpu)
    yield Step("limits", place.python("-m", "ci.limits"), seconds=5400, judge=_last_line)
    for model in GOLDEN:
        yield _compare(place, f"golden/models/{model}")


def smoke(place: Place) -> Iterator[Step]:
    """Ten tokens from an `.npz` that the engine converted itself."""
    weights = place.out / "smoke" / "model.npz"
    source = ("--model", "golden/models/tiny-llama")
    convert = ("-m", "engine", "convert", *source, "--out", weights, "--force")
    yield Step("convert to npz", place.python(*convert), seconds=SMOKE_SECONDS)
    options = ("--prompt", "def main(", "--max-tokens", TOKENS, "--device", place.device)
    generate = ("-m", "engine", "generate", "--backend", "mlx", "--model", weights, *options)

    def judge(log: str) -> str:
        return generated(log, place.leg.device)

    yield Step("generate", place.python(*generate), seconds=SMOKE_SECONDS, judge=judge)


def models(place: Place) -> Iterator[Step]:
    """Real models, each at the revision of `models.py`."""
    if place.leg.device == "metal":
        yield Step("limits", place.python("-m", "ci.limits"), seconds=5400, judge=_last_line)
    for model in MODELS:
        yield _compare(place, model.id, "--revision", model.revision)


CHECKS: dict[str, Callable[[Place], Iterator[Step]]] = {
    "lint": lint,
    "docs": docs,
    "wheels": wheels,
    "tests": tests,
    "cluster": cluster,
    "parity-cpu": parity_cpu,
    "parity-metal": parity_metal,
    "smoke": smoke,
    "models": models,
}


def _compare(place: Place, model: str, *more: str) -> Step:
    name = model.rpartition("/")[2]
    file = place.out / f"{name}.json"
    options = ("--model", model, "--device", place.device, "--dtype", "bfloat16", *more)
    command = place.python("-m", "harness", "compare", *options, "--until-decided", "--json", file)

    def judge(log: str) -> str:
        return compared(json.loads(file.read_text()), place.leg)

    return Step(f"compare {name}", command, judge=judge, report=file)


# What is seen


def compared(verdict: dict[str, Any], leg: Leg) -> str:
    """Raise Wrong unless it was judged on the leg's device, with its MLX, by its limits."""
    kind = verdict["environment"]["device"]["kind"]
    if kind != leg.device:
        raise Wrong(f"ran on {kind}, not on {leg.device}")
    version, wanted = verdict["environment"]["packages"]["mlx"], mlx_version(leg.mlx)
    if wanted and version != wanted:
        raise Wrong(f"ran with mlx {version}, not {wanted}")
    limits = verdict["calibration"]
    table = Path(limits["source"]).name
    if not table.startswith(f"{leg.device}-"):
        raise Wrong(f"judged by the limits of {table}, not of {leg.device}")
    if leg.device == "metal" and not limits["calibrated"]:
        raise Wrong(f"{limits['device_class']} is not calibrated")
    passed = sum(check["verdict"] == "pass" for check in verdict["checks"])
    return f"{passed} checks pass, mlx {version} on {kind}, limits {table}"


def generated(log: str, device: str) -> str:
    """Raise Wrong unless the log shows MLX, the device, ten tokens and their speed."""
    used = re.search(r"backend=mlx device=(\w+)", log)
    if not used:
        raise Wrong("the log does not show backend=mlx")
    if used[1] != device:
        raise Wrong(f"ran on {used[1]}, not on {device}")
    speed = re.search(r"decode: (\d+) tokens, ([\d.,]+) tokens/s", log)
    if not speed or int(speed[1]) != TOKENS or not float(speed[2].replace(",", "")):
        raise Wrong(f"the log does not show {TOKENS} tokens and a speed above zero")
    return f"{used[0]}, {speed[0]}"


def all_ran(log: str) -> str:
    """Raise Wrong where a test was skipped, which pytest takes for success."""
    last = _last_line(log)
    if "passed" not in last or "skipped" in last:
        raise Wrong(f"not every test ran: {last}")
    return last


def _is_gpu(log: str) -> str:
    if "Device(gpu, 0) True" not in log:
        raise Wrong(f"MLX's default device is not Metal's GPU: {_last_line(log)}")
    return _last_line(log)


def _last_line(log: str) -> str:
    return (log.strip().splitlines() or [""])[-1].strip("= ")
