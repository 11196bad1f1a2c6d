"""Shared by all suites: golden models, small random models, the command lines run in process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = ("tiny-llama", "tiny-gemma3", "tiny-gpt2")


@pytest.fixture(params=GOLDEN)
def golden_model(request) -> Path:
    return ROOT / "golden" / "models" / request.param


@dataclass
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def command(capsys):
    """Run `harness ...` or `engine ...` in this process, as the console scripts do."""

    def run(name: str, *arguments: object) -> Result:
        import importlib

        from engine.console import run as console

        app = importlib.import_module(f"{name}.cli").app
        capsys.readouterr()
        status = console(app, name, [str(a) for a in arguments])
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """`random_model(family, variant)` -> folder of a small random model, made once."""
    from harness.random_models import config_of, write_model

    made: dict[tuple, Path] = {}

    def make(family: str, variant: str, **changes: object) -> Path:
        key = (family, variant, *sorted(map(str, changes.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{variant}")
            made[key] = write_model(folder, {**config_of(family, variant), **changes})
        return made[key]

    return make


@pytest.fixture
def tiny_llama() -> Path:
    return ROOT / "golden" / "models" / "tiny-llama"
