"""What both command lines share: one line and status 2, an MLX that is not there included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import console
from engine.errors import UnsupportedFormat

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({}, "MLX is not installed"),
        ({"mlx": "1"}, "without a build for Linux"),
        ({"mlx": "1", "mlx-cpu": "1", "mlx-cuda-13": "1"}, "uninstall all but one"),
        ({"mlx": "1", "mlx-cpu": "1"}, "cannot be imported (libmlx.so"),
    ],
)
def test_a_missing_or_doubled_mlx_is_explained(monkeypatch, installed, words):
    monkeypatch.setattr(console, "_version", installed.get)
    monkeypatch.setattr(sys, "platform", "linux")
    text = console.missing_mlx(ImportError("libmlx.so: cannot open\nsecond line"))
    assert words in text and "pip install 'mlx-parity[cpu]'" in text and "\n" not in text


@pytest.mark.parametrize("program", ["harness", "engine"])
def test_without_mlx_both_programs_give_one_line(program, tmp_path):
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").touch()
    (tmp_path / "mlx" / "core.py").write_text("raise ImportError('libmlx.so: no such file')")
    command = {"harness": ["compare"], "engine": ["generate", "--prompt", "x"]}[program]
    run = subprocess.run(
        [sys.executable, "-m", program, *command, "--model", "tiny-llama"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=ROOT,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith(f"{program}: mlx") and len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("program", ["harness", "engine"])
def test_help_imports_nothing_heavy(program):
    code = (
        f"import sys\nfrom {program}.cli import app\nfrom engine.console import run\n"
        f"assert run(app, {program!r}, ['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'mlx_lm', 'mlx', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/full/file"), "/full/file: No space left"),
        (
            UnsupportedFormat("what a \x1b[31mforeign\x07 file\nsays"),
            "a \ufffd[31mforeign\ufffd file",
        ),
    ],
)
def test_a_disk_and_a_foreign_file_are_one_plain_line(capsys, error, words):
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fails(what: str) -> None:
        raise error

    assert console.run(app, "fails", ["x"]) == 2
    shown = capsys.readouterr().err
    assert words in shown and shown.removesuffix("\n").isprintable()
    with pytest.raises(type(error)):
        console.run(app, "fails", ["x", "--debug"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
@pytest.mark.parametrize("command", [["gpu-info", "--json"], ["list"], ["--help"]])
def test_output_that_has_no_room_is_one_line(command):
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "engine", *command],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
    assert run.returncode == 2 and "No space left" in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_remarks_that_have_no_room_stop_nothing():
    command = ["generate", "--backend", "mlx", "--model", "tiny-llama", "--prompt", "def main("]
    told = []
    for log in (os.devnull, "/dev/full"):
        with open(log, "w") as stderr:
            run = subprocess.run(
                [sys.executable, "-m", "engine", *command, "--max-tokens", "4"],
                stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT,
            )  # fmt: skip
        told.append((run.returncode, run.stdout))
    assert told[0] == told[1] and told[0][0] == 0 and told[0][1].strip()


def test_an_interruption_says_so(capsys):
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def stopped(what: str) -> None:
        raise KeyboardInterrupt

    assert console.run(app, "stopped", ["x"]) == 130
    assert capsys.readouterr().err == "stopped: interrupted\n"


def test_a_defect_of_ours_is_no_one_liner(monkeypatch):
    """Only what is the user's to act on is put into one line; a bug keeps its traceback."""
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def broken(what: str) -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        console.run(app, "broken", ["x"])
