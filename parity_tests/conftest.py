"""Shared by all suites: golden models, small random models, the command lines run in process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@pytest.fixture
def certificates(tmp_path, monkeypatch) -> Path:
    """A folder of certificates of the test's own, not there yet."""
    folder = tmp_path / "certificates"
    monkeypatch.setenv("MLX_PARITY_CERTIFICATES", str(folder))
    return folder


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The project as it is shipped, built here with nothing downloaded."""
    pytest.importorskip("hatchling", reason="builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--wheel-dir", str(folder), str(ROOT)]
    no_compiler = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    done = subprocess.run(command, capture_output=True, text=True, env=no_compiler)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.fixture
def tiny_llama() -> Path:
    return ROOT / "golden" / "models" / "tiny-llama"


# Rows of whole groups: the smallest of MLX's common group sizes is 32.
PACKABLE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.fixture(scope="session")
def packable_model(random_model):
    """`packable_model(family, variant)` -> folder of a small random model that can be quantised."""

    def make(family: str, variant: str, **changes: object) -> Path:
        from harness.random_models import config_of

        known = config_of(family, variant)
        more = {"moe_intermediate_size": 64} if "moe_intermediate_size" in known else {}
        return random_model(family, variant, **{**PACKABLE, **more, **changes})

    return make


@pytest.fixture(scope="session")
def quantised_model(packable_model, tmp_path_factory):
    """`quantised_model(family, variant)` -> folder of such a model as mlx-lm quantises it, once.

    `predicate(path, module)` is mlx-lm's: whether, or with what settings, a module is packed.
    """
    made: dict[tuple, Path] = {}

    def make(
        family: str,
        variant: str,
        predicate=None,
        *,
        bits: int = 4,
        group_size: int = 32,
        mode: str = "affine",
        dtype: str = "float32",
        **changes: object,
    ) -> Path:
        key = family, variant, predicate, bits, group_size, mode, dtype, *map(str, changes.items())
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{variant}-{mode}{bits}")
            source = packable_model(family, variant, **changes)
            settings = {"bits": bits, "group_size": group_size, "mode": mode}
            made[key] = as_mlx_lm_does(source, folder, predicate, dtype, settings)
        return made[key]

    return make


def as_mlx_lm_does(source: Path, folder: Path, predicate, dtype: str, settings: dict) -> Path:
    """What `mlx_lm.convert --quantize` writes of a model without a tokenizer."""
    import mlx.core as mx
    import mlx_lm.utils
    from mlx.utils import tree_map

    model, config = mlx_lm.utils.load_model(source)
    model.update(tree_map(lambda array: array.astype(getattr(mx, dtype)), model.parameters()))
    model, config = mlx_lm.utils.quantize_model(
        model, config, **settings, quant_predicate=predicate
    )
    mlx_lm.utils.save_model(folder, model)
    mlx_lm.utils.save_config(config, folder / "config.json")
    return folder
