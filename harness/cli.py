"""`harness compare` and `harness golden`. Heavy imports happen in the command that needs them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .executors import Executor

app = typer.Typer(
    help="Prove that an MLX implementation of a language model computes what the original does.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
golden = typer.Typer(help="Record, verify and share golden traces.")
app.add_typer(golden, name="golden")
faults = typer.Typer(help="Plant defects, and count what is found.")
app.add_typer(faults, name="faults")

ModelOption = Annotated[
    str,
    typer.Option("--model", help="Folder, .npz or .safetensors file, golden name or Hub id."),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hub id.")]
GoldenFolder = Annotated[
    Path, typer.Option("--golden", help="Folder that holds traces/ and MANIFEST.json.")
]
Jobs = Annotated[int, typer.Option(help="Processes of this machine.")]
Where = Annotated[
    str | None,
    typer.Option("--executor", help="What runs the tasks: local, bounded or ray:ADDRESS."),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="On a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; see docs/CLUSTER.md.",
    ),
]
Resume = Annotated[Path | None, typer.Option(help="Results so far; the file grows as they come.")]


@app.callback()
def _options() -> None:
    """Exit status: 0 parity holds, 1 it does not, 2 it could not be run, 3 inconclusive."""


@app.command()
def compare(
    model: ModelOption,
    candidate: Annotated[
        str, typer.Option(help="engine, mlx-lm, python:MODULE:FUNCTION, trace:FILE or a URL.")
    ] = "engine",
    reference: Annotated[
        str | None,
        typer.Option(
            help="torch, mlx-lm, engine, golden or trace:FILE; default torch if installed."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32; bfloat16 or float16 add their rung to it.")
    ] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu or gpu, for MLX; default its own.")
    ] = None,
    checks: Annotated[str | None, typer.Option(help="Comma-separated names; default all.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="More probes: a text or list of ids a line.")
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(help="What a quantised model was made from; its loss is reported."),
    ] = None,
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Add prompts until no answer is open.")
    ] = False,
    depth: Annotated[
        str, typer.Option(help="block, or module to measure inside every block.")
    ] = "block",
    kinds: Annotated[
        str | None, typer.Option(help="Comma-separated kinds of probes; default all.")
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(help="Run both sides part by part; default where they do not fit."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Stream, and go on from this file when interrupted.")
    ] = None,
    ranks: Annotated[
        int, typer.Option(min=1, help="Run the engine in so many processes, which split the model.")
    ] = 1,
    json: Annotated[Path | None, typer.Option(help="Write the verdict to this file.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="The same as one HTML page, with pictures.")
    ] = None,
    allow: Annotated[
        str | None,
        typer.Option(help="Comma-separated: remote-code, pickle; refused by default."),
    ] = None,
    revision: Revision = None,
) -> int:
    """Compare a candidate with a reference: weights, tokens, blocks, logits, greedy, cache."""
    from .report import check_writable, write
    from .types import ERROR, Verdict

    wanted = {name: path for name, path in (("json", json), ("html", html)) if path is not None}
    for name, path in wanted.items():
        check_writable(path, f"--{name}")
    verdict = Verdict(model, candidate, reference or "", dtype, device or "")
    try:
        from .judge import compare as judge

        names = _list(checks)
        with _progress() as progress:
            judge(
                model,
                candidate,
                reference,
                dtype,
                names,
                device=device,
                prompts=prompts,
                original=original,
                until_decided=until_decided,
                depth=depth,
                revision=revision,
                allow=_list(allow) or (),
                kinds=_list(kinds),
                stream=stream,
                resume=resume,
                ranks=ranks,
                progress=progress,
                notice=_notice,
                into=verdict,
            )
    except Exception as error:
        verdict.error = str(error) or type(error).__name__
        raise
    finally:
        if verdict.error or verdict.checks:
            for name, path in wanted.items():
                write(verdict, name, path)
    from .report.terminal import show

    show(verdict, _console())
    for check in verdict.checks:
        if check.verdict == ERROR:
            print(f"harness: {check.reason}", file=sys.stderr)
    return verdict.exit_status


@app.command()
def certify(
    model: ModelOption,
    candidate: Annotated[
        str, typer.Option(help="engine; its own command line goes by no other certificate.")
    ] = "engine",
    reference: Annotated[
        str | None, typer.Option(help="torch, mlx-lm, golden or trace:FILE; default as compare.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Beside float32; default that of the weights.")
    ] = None,
    days: Annotated[int, typer.Option(help="How long it holds.")] = 90,
    out: Annotated[
        Path | None, typer.Option(help="Default a file in the folder that engine reads.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or gpu, for MLX.")] = None,
    revision: Revision = None,
) -> int:
    """Compare, and where parity holds write the certificate by which engine chooses its backend.

    Exit status as compare has it; nothing is written unless it is 0.
    """
    from .certify import certify as write
    from .report.terminal import show

    with _progress() as progress:
        verdict, path = write(
            model, candidate, reference, dtype=dtype, days=days, out=out,
            device=device, revision=revision, progress=progress, notice=_notice,
        )  # fmt: skip
    show(verdict, _console())
    if path is None:
        _notice("no certificate is written")
    else:
        print(path)
    return verdict.exit_status


@app.command()
def tokenizer(
    model: ModelOption,
    candidate: Annotated[str, typer.Option(help="engine, mlx-lm or a server's URL.")] = "engine",
    fuzz: Annotated[int, typer.Option(help="Random texts, beside the written ones.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the random texts.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the answers to this file.")] = None,
    revision: Revision = None,
) -> int:
    """Compare a tokenizer with transformers': ids, offsets, decoding, streaming, chat templates."""
    from .errors import BadOption
    from .report.tokenizers import show, write
    from .tokenizers.judge import judge
    from .types import EXIT_STATUS

    if json is not None and not json.parent.is_dir():
        raise BadOption(f"--json {json}: the folder {json.parent} does not exist")
    try:
        with _progress() as progress:
            findings = judge(model, candidate, fuzz, seed, revision=revision, progress=progress)
    except Exception as error:
        if json is not None:
            write(model, candidate, str(error) or type(error).__name__, json)
        raise
    if json is not None:
        write(model, candidate, findings, json)
    show(model, findings, _console())
    return EXIT_STATUS[findings.verdict]


@app.command()
def trace(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="File to write.")],
    candidate: Annotated[
        str, typer.Option(help="What to run: engine, mlx-lm, torch or python:MODULE:FUNCTION.")
    ] = "engine",
    probes: Annotated[
        bool, typer.Option("--probes", help="Write the probes for other programs instead.")
    ] = False,
    on: Annotated[
        Path | None, typer.Option(help="Run the probes of this file; default those of compare.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Whose probes to write: torch, mlx-lm, engine or golden."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or gpu, for MLX.")] = None,
    revision: Revision = None,
) -> None:
    """Write what a side computes as a trace file, or with --probes what a foreign program runs."""
    from .errors import BadOption
    from .tracing import write_probes, write_trace

    if probes and on:
        raise BadOption(f"--on {on}: goes with a trace, and --probes writes those of a reference")
    if reference and not probes:
        raise BadOption(f"--reference {reference}: goes with --probes; a trace has --candidate")
    with _progress() as progress:
        if probes:
            path = write_probes(model, out, reference, dtype, revision=revision, progress=progress)
        else:
            path = write_trace(
                model, candidate, out, dtype,
                on=on, device=device, revision=revision, progress=progress,
            )  # fmt: skip
    print(path)


@app.command()
def repro(
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Folder to write; must not hold anything yet.")],
    candidate: Annotated[str, typer.Option(help="engine or mlx-lm.")] = "engine",
    reference: Annotated[str | None, typer.Option(help="torch or mlx-lm; default torch.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or gpu, for MLX.")] = None,
    revision: Revision = None,
) -> None:
    """Write the first divergence as a folder that runs by itself, with mlx and numpy alone."""
    from .judge import comparison_of
    from .repro import reproduce

    with _progress() as progress:
        comparison = comparison_of(
            model, candidate, reference, dtype, device=device, revision=revision, progress=progress
        )
        script = reproduce(comparison, out)
    print(script)


@app.command()
def bisect(
    model: ModelOption,
    package: Annotated[
        str, typer.Option(help="mlx, mlx-lm, transformers, or any that a python: candidate uses.")
    ],
    good: Annotated[str, typer.Option(help="A release with the numbers that are known.")],
    bad: Annotated[str, typer.Option(help="A release with other numbers.")],
    candidate: Annotated[
        str | None,
        typer.Option(
            help="engine, mlx-lm, torch or python:MODULE:FUNCTION; default by the package."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Whose noise counts: torch, mlx-lm or golden; default as compare."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu or gpu, for MLX.")] = None,
    bits: Annotated[
        bool, typer.Option("--bits", help="Any other bit counts, not only what is beyond a limit.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--every", help="Run all releases between, in place of a search.")
    ] = False,
    versions: Annotated[
        str | None,
        typer.Option(help="Comma-separated: try these in between, and ask no index."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Of the environments; default ~/.cache/mlx-parity/bisect."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time that one run may take.")] = 600.0,
    memory: Annotated[
        float | None, typer.Option(help="GB that one run may take; default no limit.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write what was found to this file.")] = None,
    revision: Revision = None,
) -> int:
    """Find the release of a package that moved the numbers, where first and by how much.

    Exit status: 0 nothing moved, 1 a release was found, 2 it could not be run, 3 inconclusive.
    PIP_* variables say where releases come from.
    """
    from .bisect.findings import Findings
    from .bisect.run import bisect as find
    from .report import check_writable
    from .report.bisect import show, write

    if json is not None:
        check_writable(json, "--json")
    found = Findings(package, model, candidate or "", reference or "", dtype, bits, good, bad)
    try:
        with _progress() as progress:
            find(
                model, package, good, bad, candidate, reference, dtype,
                device=device, bits=bits, every=every, versions=_list(versions), cache=cache,
                seconds=seconds, memory=memory, revision=revision,
                progress=progress, notice=_notice, into=found,
            )  # fmt: skip
    except Exception as error:
        found.error = str(error) or type(error).__name__
        raise
    finally:
        if json is not None and (found.error or found.seconds):
            write(found, json)
    show(found, _console())
    return found.exit_status


@app.command()
def calibrate(
    seeds: Annotated[int, typer.Option(help="Random models of every family.")] = 8,
    runs: Annotated[
        int, typer.Option(help="Fewest behind a row; models are made until there are as many.")
    ] = 59,
    device: Annotated[str | None, typer.Option(help="cpu or gpu, for MLX.")] = None,
    jobs: Jobs = 1,
    out: Annotated[
        Path | None, typer.Option(help="Default ~/.mlx-parity/limits/DEVICE-CLASS.json.")
    ] = None,
    executor: Where = None,
    ray: Ray = None,
    resume: Resume = None,
) -> None:
    """Measure the limits of this device: harmless implementations, scored as candidates."""
    from .calibration import calibrate as measure

    with _progress() as progress:
        path = measure(
            seeds, least=runs, device=device, executor=_executor(executor, ray, jobs),
            out=out, resume=resume, progress=progress,
        )  # fmt: skip
    print(path)


@app.command()
def models(
    out: Annotated[Path, typer.Option(help="File to write, in Markdown.")],
    families: Annotated[str | None, typer.Option(help="Comma-separated; default all.")] = None,
    jobs: Jobs = 1,
    executor: Where = None,
    ray: Ray = None,
    resume: Resume = None,
) -> None:
    """Judge every family of the engine, and write the page that says what it runs."""
    from .families import judge_families
    from .report.families import write

    with _progress() as progress:
        found = judge_families(
            _list(families), executor=_executor(executor, ray, jobs),
            resume=resume, progress=progress,
        )  # fmt: skip
    write(found, out, f"harness models --out {out}")
    wrong = [family.name for family in found if not family.passes]
    print(f"{len(found)} families, {len(wrong)} with a variant that does not pass", *wrong)
    raise typer.Exit(1 if wrong else 0)


@app.command()
def atlas(
    candidate: Annotated[str, typer.Option(help="mlx-lm or engine.")] = "mlx-lm",
    families: Annotated[
        str | None, typer.Option(help="Comma-separated model types; default all.")
    ] = None,
    jobs: Jobs = 2,
    memory: Annotated[float, typer.Option(help="GB that one family may take.")] = 3.0,
    seconds: Annotated[float, typer.Option(help="Time that one family may take.")] = 600.0,
    executor: Where = None,
    ray: Ray = None,
    resume: Resume = None,
    keep: Annotated[
        Path | None, typer.Option(help="Leave the models below this folder, for harness repro.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the atlas to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="The same as JSON.")] = None,
    html: Annotated[Path | None, typer.Option(help="The same as one HTML page.")] = None,
) -> int:
    """Judge tiny models of every family that transformers and a candidate both have.

    Exit status 1 when a failure is not waived, or a waiver matches nothing any more.
    """
    from .atlas import make
    from .report.atlas import FORMATS, summary, write

    wanted = {"markdown": markdown, "json": json, "html": html}
    with _progress() as progress:
        found = make(
            candidate, _list(families), executor=_executor(executor, ray, jobs),
            memory=memory, seconds=seconds, resume=resume, keep=keep, progress=progress,
        )  # fmt: skip
    for name, path in wanted.items():
        if path is not None:
            write(found, path, FORMATS[name])
    for line in summary(found):
        print(line)
    return found.exit_status


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """What is installed, whether TF32 is on, and what this machine can judge.

    Exit status 2 when nothing can be judged.
    """
    from .doctor import examine
    from .report.doctor import document, show

    health = examine()
    if json:
        print(document(health))
    else:
        show(health, _console())
    return health.exit_status


@golden.command()
def record(
    model: ModelOption,
    reference: Annotated[str, typer.Option(help="torch, mlx-lm or engine.")] = "torch",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    columns: Annotated[
        int | None,
        typer.Option(help="Of sketches; 0 for whole arrays; default by the size of the model."),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(help="Run it part by part; default where it does not fit into memory."),
    ] = None,
    folder: GoldenFolder = Path("golden"),
    revision: Revision = None,
) -> None:
    """Record what a reference computes on a model, with the float64 oracle and the noise."""
    from .golden.store import record as write

    with _progress() as progress:
        path = write(
            model, reference, dtype, folder,
            columns=columns, stream=stream, revision=revision, progress=progress, notice=_notice,
        )  # fmt: skip
    print(path)


@golden.command()
def verify(
    model: Annotated[
        str | None, typer.Option("--model", help="Only goldens of this model.")
    ] = None,
    folder: GoldenFolder = Path("golden"),
    jobs: Jobs = 1,
    executor: Where = None,
    ray: Ray = None,
) -> None:
    """Check that every golden is whole, unaltered, and of the model beside it."""
    from .golden.store import verify as check

    with _progress() as progress:
        found = check(folder, model, executor=_executor(executor, ray, jobs), progress=progress)
    for entry in found:
        print(f"ok  {entry}")


@golden.command("list")
def list_goldens(folder: GoldenFolder = Path("golden")) -> None:
    """Every golden: model, reference, dtype, size, date, device, versions."""
    from .golden.manifest import read_manifest
    from .report.goldens import listed

    _console().print(listed(read_manifest(folder)["goldens"]))


@golden.command()
def show(file: Annotated[Path, typer.Argument(help="A golden, traces/NAME.safetensors.")]) -> None:
    """Where a golden comes from, what it holds, and its probes."""
    from .golden.difference import read_golden
    from .report.goldens import shown

    _console().print(shown(*read_golden(file)))


@golden.command()
def diff(
    one: Annotated[Path, typer.Argument(help="A golden.")],
    other: Annotated[Path, typer.Argument(help="Another golden of the same weights.")],
) -> int:
    """What moved between two goldens; exit status 1 where an answer could be another one."""
    from .golden.difference import difference
    from .report.goldens import different

    found = difference(one, other)
    _console().print(different(found))
    return int(found.moved)


OnlyModel = Annotated[str | None, typer.Option("--model", help="Only goldens of this model.")]


@golden.command()
def push(
    to: Annotated[
        str, typer.Argument(help="hf://datasets/OWNER/NAME, an address of fsspec's, or a folder.")
    ],
    model: OnlyModel = None,
    folder: GoldenFolder = Path("golden"),
    revision: Annotated[str | None, typer.Option(help="Branch of a Hub repository.")] = None,
) -> None:
    """Send goldens to where others can pull them; what is there already stays."""
    from .golden.remote import push as send

    with _progress() as progress:
        result = send(folder, to, model=model, revision=revision, progress=progress)
    _shared("sent", result)


@golden.command()
def pull(
    source: Annotated[
        str, typer.Argument(help="What push was given, or the http(s) address of such a folder.")
    ],
    model: OnlyModel = None,
    folder: GoldenFolder = Path("golden"),
    revision: Annotated[
        str | None, typer.Option(help="Commit, tag or branch of a Hub repository.")
    ] = None,
) -> None:
    """Fetch goldens; each counts only once its sha256 is right, and a broken pull goes on."""
    from .golden.remote import pull as fetch

    with _progress() as progress:
        result = fetch(source, folder, model=model, revision=revision, progress=progress)
    _shared("got", result)


def _shared(word: str, result: Any) -> None:
    for file in result.moved:
        print(f"{word:5} {file}")
    for file in result.kept:
        print(f"same  {file}")
    print(result.place)


@faults.command("list")
def list_faults() -> None:
    """Every fault of the catalogue: name, where it was found in public, and what it does."""
    from rich.table import Table

    from .faults import all_faults

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, fault in all_faults().items():
        mark = "equivalent" if fault.equivalent else fault.source
        table.add_row(name, mark, fault.what)
    _console().print(table)


@faults.command("run")
def run_faults(
    models: Annotated[
        str | None, typer.Option(help="Comma-separated FAMILY/VARIANT or models; default all.")
    ] = None,
    faults: Annotated[
        str | None, typer.Option(help="Comma-separated KIND.NAME; default all.")
    ] = None,
    candidates: Annotated[str, typer.Option(help="Comma-separated.")] = "engine,mlx-lm",
    seeds: Annotated[int, typer.Option(help="Random models of every variant.")] = 1,
    clean_seeds: Annotated[
        int, typer.Option(help="Random models of every variant left clean, at every dtype.")
    ] = 6,
    jobs: Jobs = 2,
    executor: Where = None,
    ray: Ray = None,
    resume: Resume = None,
    json: Annotated[Path | None, typer.Option(help="Write every score to this file.")] = None,
) -> int:
    """Plant every fault on every model, one by one, and print the scoreboard.

    Exit status 1 when a fault that is no equivalent is not found, or a clean run fails.
    """
    from .report.scores import as_markdown, misses, write
    from .scoreboard import plan, run_model, shipped_and_random
    from .sweep import sweep

    asked = _list(models) or shipped_and_random()
    tasks = plan(asked, _list(candidates) or [], seeds, clean_seeds, _list(faults))
    with _progress() as progress:
        found = sweep(
            run_model, tasks, executor=_executor(executor, ray, jobs),
            resume=resume, progress=progress,
        )  # fmt: skip
        scores = [score for _, result in found for score in result]
    if json is not None:
        write(scores, json)
    print(as_markdown(scores))
    for line in (missed := misses(scores)):
        print(line)
    return 1 if missed else 0


def _executor(name: str | None, ray: str | None, jobs: int) -> Executor:
    """What --executor, --ray and --jobs ask for together."""
    from .errors import BadOption
    from .executors import load_executor

    if name is not None and ray is not None:
        raise BadOption(f"--executor {name} --ray {ray}: both say where tasks run; give one")
    if ray is not None:
        name = f"ray:{ray}"
    return load_executor(name or "local", jobs=jobs, notice=_notice)


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A bar on stderr that goes when the work is done; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = SpinnerColumn(), BarColumn(30), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def advance(done: int, total: int | None, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield advance


def _notice(text: str) -> None:
    print(f"harness: {text}", file=sys.stderr)


def _list(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text is not None else None


def _console() -> Any:
    """100 columns where the output is no terminal, so that logs read alike everywhere.

    No markup: names that foreign files hold are shown as they are.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else 100
    return Console(width=width, highlight=False, markup=False, emoji=False)
