"""A pytest plugin: `def test_my_port(parity): parity.check("my_model", candidate=my_function)`.

pytest finds it by the entry point `mlx_parity` wherever this project is installed. It imports
nothing but pytest until a check is asked for; importing the package has pinned TF32 off by then.
It judges nothing itself: `harness.compare` does. docs/PYTEST.md shows how it is used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .sides import Candidate
    from .types import Verdict

GOLDENS = "MLX_PARITY_GOLDENS"  # names the project's folder to `golden.manifest`
REPORTS = ("json", "html")
PACKAGES = {"torch": ("torch", "transformers"), "mlx-lm": ("mlx_lm",)}  # what references need


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and the ini setting."""
    group = parser.getgroup("parity", "parity of MLX models (mlx-parity)")
    group.addoption(
        "--parity-update",
        action="store_true",
        help="record the goldens of all models that are checked, or record them anew",
    )
    for name in REPORTS:
        group.addoption(
            f"--parity-{name}", type=Path, metavar="DIR", help=f"write every verdict as {name}"
        )
    parser.addini("parity_goldens", "folder of the project's goldens", default="tests/goldens")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "parity: compares a model with its reference")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the fixture, so that `-m parity` finds it."""
    for item in items:
        if "parity" in getattr(item, "fixturenames", ()):
            item.add_marker("parity")


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Parity:
    """Judges implementations of models: `parity.check(model, candidate=...)`."""
    return Parity(request.config, request.node.nodeid)


class Parity:
    """The checks of one test."""

    def __init__(self, config: pytest.Config, test: str) -> None:
        self._config, self._test, self._checked = config, test, 0

    @property
    def goldens(self) -> Path:
        """The project's folder of goldens."""
        return self._config.rootpath / str(self._config.getini("parity_goldens"))

    def check(
        self,
        model: str | Path,
        candidate: Candidate = "engine",
        reference: str | None = None,
        dtype: str = "float32",
        checks: Sequence[str] | None = None,
        **options: Any,
    ) -> Verdict:
        """Fail the test unless `candidate` computes what the reference computes.

        `candidate` is a function from a list of token ids to logits (T, V), see
        `backends/python.py`, or a backend's name. `reference` None is torch where that is
        installed. Of a reference that is not installed the golden is taken, and without one the
        test is skipped. `options` are the others of `harness.compare`. An inconclusive verdict
        fails too. Returns the verdict that holds.
        """
        __tracebackhide__ = True
        from .judge import compare
        from .types import PASS, Verdict

        wanted = reference or "torch"
        verdict = Verdict(str(model), "", wanted, dtype, "")
        asked = {"candidate": candidate, "dtype": dtype, "checks": checks, **options}
        self._checked += 1
        with self._environment():
            try:
                if self._config.getoption("parity_update"):
                    wanted = self._record(str(model), wanted, dtype, options)
                elif not wanted.startswith("golden") and not _installed(wanted):
                    wanted = f"golden:{wanted}"
                compare(model, reference=wanted, into=verdict, **asked)
            except Exception as error:
                verdict.error = str(error) or type(error).__name__
                self._end(error, verdict)
            finally:
                written = self._write(verdict) if verdict.error or verdict.checks else []
        if verdict.verdict != PASS:
            pytest.fail(self._told(verdict, candidate, model, checks, written), pytrace=False)
        return verdict

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Goldens of the project are looked for first, until the check is over."""
        old = os.environ.get(GOLDENS)
        os.environ[GOLDENS] = str(self.goldens)
        try:
            yield
        finally:
            os.environ.pop(GOLDENS)
            if old is not None:
                os.environ[GOLDENS] = old

    def _record(self, model: str, reference: str, dtype: str, options: dict[str, Any]) -> str:
        """Record a golden of every rung; the reference to compare with then."""
        from .golden.store import record

        live = reference.removeprefix("golden").lstrip(":") or "torch"
        for rung in dict.fromkeys(("float32", dtype)):
            record(
                model, live, rung, self.goldens,
                revision=options.get("revision"),
                command=shlex.join(["pytest", self._test, "--parity-update"]),
            )  # fmt: skip
        return f"golden:{live}"

    def _end(self, error: Exception, verdict: Verdict) -> None:
        """Skip or fail where the comparison could not be run; an unknown error goes its way.

        What has failed at one dtype is no less wrong where there is no golden for another.
        """
        __tracebackhide__ = True
        from engine.errors import EngineError

        from .errors import GoldenMissing
        from .report.brief import brief

        if isinstance(error, GoldenMissing) and verdict.first_divergence is None:
            why = f"the reference is not here, and {error}; --parity-update records it where it is"
            pytest.skip(why)
        if not isinstance(error, EngineError):
            raise error
        cause = error.__cause__
        shown = "".join(traceback.format_exception(cause)) if cause else ""
        pytest.fail(shown + brief(verdict), pytrace=False)

    def _write(self, verdict: Verdict) -> list[Path]:
        """The reports that were asked for; their names are the test's."""
        from .report import write

        written = []
        for name in REPORTS:
            folder = self._config.getoption(f"parity_{name}")
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                written.append(folder / f"{self._file}.{name}")
                write(verdict, name, written[-1])
        return written

    @property
    def _file(self) -> str:
        """A file name for each check of each test; the digest keeps odd names apart."""
        plain = re.sub(r"[^\w.-]+", "-", self._test)[-80:].strip("-")
        digest = hashlib.sha256(self._test.encode(errors="replace")).hexdigest()[:6]
        number = f"-{self._checked}" if self._checked > 1 else ""
        return f"{plain}-{digest}{number}"

    def _told(
        self,
        verdict: Verdict,
        candidate: Candidate,
        model: str | Path,
        checks: Sequence[str] | None,
        written: Sequence[Path],
    ) -> str:
        from .report.brief import brief

        again = ["harness", "compare", "--model", str(model), "--reference", verdict.reference]
        if verdict.dtype != "float32":
            again += ["--dtype", verdict.dtype]
        if checks:
            again += ["--checks", ",".join(checks)]
        pinned = f"{GOLDENS}={shlex.quote(str(self.goldens))} "
        golden = verdict.reference.startswith("golden")
        lines = [brief(verdict), f"this test again: pytest {shlex.quote(self._test)}"]
        if name := _name(candidate, self._config.rootpath):
            command = shlex.join([*again, "--candidate", name])
            lines.append(f"without pytest: {pinned * golden}{command}")
        lines += [f"report: {path}" for path in written]
        return "\n".join(lines)


def _installed(reference: str) -> bool:
    from .sides import installed

    return installed(*PACKAGES.get(reference.partition(":")[0], ()))


def _name(candidate: Candidate, root: Path) -> str | None:
    """What names a candidate on the command line in a folder; None where nothing does.

    A function made inside another has no name there, nor has one of a module that is not imported
    from that folder, as a file of tests below it.
    """
    if isinstance(candidate, str):
        return candidate
    home, name = (getattr(candidate, key, "") for key in ("__module__", "__qualname__"))
    file = getattr(sys.modules.get(home), "__file__", None)
    if not name.isidentifier() or file is None:
        return None
    below = Path(file).is_relative_to(root)
    known = [root / f"{home.replace('.', '/')}{end}" for end in (".py", "/__init__.py")]
    return None if below and Path(file) not in known else f"python:{home}:{name}"
