"""`harness compare` and `harness golden`. Heavy imports happen in the command that needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from engine.errors import EngineError

app = typer.Typer(
    help="Prove that an MLX implementation of a language model computes what the original does.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
golden = typer.Typer(help="Record and verify golden traces.")
app.add_typer(golden, name="golden")

ModelOption = Annotated[
    str,
    typer.Option("--model", help="Folder, .npz or .safetensors file, golden name or Hub id."),
]
Revision = Annotated[Optional[str], typer.Option(help="Revision of a Hub id.")]
GoldenFolder = Annotated[
    Path, typer.Option("--golden", help="Folder that holds traces/ and MANIFEST.json.")
]


@app.callback()
def _options() -> None:
    """Exit status: 0 parity holds, 1 it does not, 2 it could not be run, 3 inconclusive."""


@app.command()
def compare(
    model: ModelOption,
    candidate: Annotated[
        str, typer.Option(help="engine, mlx-lm or python:MODULE:FUNCTION.")
    ] = "engine",
    reference: Annotated[
        Optional[str],
        typer.Option(help="torch, mlx-lm, engine or golden; default torch if installed."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32; bfloat16 or float16 add their rung to it.")
    ] = "float32",
    device: Annotated[
        Optional[str], typer.Option(help="cpu or gpu, for MLX; default its own.")
    ] = None,
    checks: Annotated[
        Optional[str], typer.Option(help="Comma-separated names; default all.")
    ] = None,
    prompts: Annotated[
        Optional[Path], typer.Option(help="More probes: a text or list of ids a line.")
    ] = None,
    json: Annotated[Optional[Path], typer.Option(help="Write the verdict to this file.")] = None,
    revision: Revision = None,
) -> int:
    """Compare a candidate with a reference: weights, tokens, blocks, logits, greedy, cache."""
    from .errors import BadOption
    from .types import Verdict

    if json is not None and not json.parent.is_dir():
        raise BadOption(f"--json {json}: the folder {json.parent} does not exist")
    verdict = Verdict(model, candidate, reference or "", dtype, device or "")
    try:
        from .judge import compare as judge

        names = [name.strip() for name in checks.split(",")] if checks else None
        with _progress() as progress:
            judge(
                model,
                candidate,
                reference,
                dtype,
                names,
                device=device,
                prompts=prompts,
                revision=revision,
                progress=progress,
                into=verdict,
            )
    except EngineError as error:
        verdict.error = str(error)
        raise
    finally:
        if json is not None and (verdict.error or verdict.checks):
            _write(verdict, json)
    from .report.terminal import show

    show(verdict, _console())
    return verdict.exit_status


@golden.command()
def record(
    model: ModelOption,
    reference: Annotated[str, typer.Option(help="torch, mlx-lm or engine.")] = "torch",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    folder: GoldenFolder = Path("golden"),
    revision: Revision = None,
) -> None:
    """Record what a reference computes on a model, with the float64 oracle and the noise."""
    from .golden.store import record as write

    with _progress() as progress:
        path = write(model, reference, dtype, folder, revision=revision, progress=progress)
    print(path)


@golden.command()
def verify(
    model: Annotated[
        Optional[str], typer.Option("--model", help="Only goldens of this model.")
    ] = None,
    folder: GoldenFolder = Path("golden"),
) -> None:
    """Check that every golden is whole, unaltered, and of the model beside it."""
    from .golden.store import verify as check

    for entry in check(folder, model):
        print(f"ok  {entry}")


class _progress:
    """A bar on stderr for what takes longer than a second; nothing where nobody looks."""

    def __enter__(self) -> Any:
        import time

        self._bar, self._task, self._begin = None, None, time.monotonic()
        return self._advance if sys.stderr.isatty() else None

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _advance(self, done: int, total: int, what: str) -> None:
        import time

        if self._bar is None and time.monotonic() - self._begin > 1:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(what, total=total)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=what)


def _console() -> Any:
    """100 columns where the output is no terminal, so that logs read alike everywhere."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100, highlight=False)


def _write(verdict: Any, path: Path) -> None:
    from .errors import BadOption
    from .report.json import write

    try:
        write(verdict, path)
    except OSError as error:
        raise BadOption(f"--json {path}: {error.strerror}") from None
