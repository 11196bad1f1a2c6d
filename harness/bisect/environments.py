"""A virtual environment for each release, made once and kept.

An environment holds the release and what it brings that is not here already, some ten megabytes;
everything else, PyTorch above all, is seen through it: its site-packages stand before those of the
Python that runs this. So it is made in seconds, and two of them differ in nothing but what they
hold. Half of one is never seen: it is made under another name and renamed when it is whole.
Knows nothing of what is run in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import secrets
import shutil
import site
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from .packages import requirements

STAMP = "harness-bisect.json"
UNFINISHED = ".unfinished-"
LAYERS = "_layers.pth"


class CannotRun(Exception):
    """A release could not be installed, or its run ended badly: a result, told in one line."""


@dataclass(frozen=True)
class Environment:
    """`holds` are the packages that it has itself, with their versions; `seconds` is what making it
    took, 0 where it was there."""

    folder: Path
    holds: Mapping[str, str]
    size: int
    seconds: float = 0.0

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


class Environments:
    """Those of one package, below a folder. `tell(text)` hears what takes long."""

    def __init__(
        self, folder: Path, package: str, tell: Callable[[str], None] | None = None
    ) -> None:
        self._folder, self._package = folder, package
        self._tell = tell or (lambda text: None)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)

    def of(self, release: str) -> Environment:
        """The environment of a release, made where there is none. Raises CannotRun."""
        wanted = requirements(self._package, release)
        name = f"{self._package}-{release}-{_digest(wanted)}"
        folder = self._folder / name
        if (folder / STAMP).exists():
            return _read(folder)
        shutil.rmtree(folder, ignore_errors=True)  # somebody has deleted a part of it
        self._tell(f"making the environment of {self._package} {release}")
        begin = time.perf_counter()
        half = self._folder / f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}"
        try:
            _make(half, wanted)
            # Somebody else may have made the same one meanwhile: then theirs is as good.
            with contextlib.suppress(OSError):
                half.rename(folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)
        return replace(_read(folder), seconds=time.perf_counter() - begin)


def _make(folder: Path, wanted: list[str]) -> None:
    """A whole environment in a folder that is not there yet."""
    own_pip = importlib.util.find_spec("pip") is None  # as in environments that uv makes
    venv.EnvBuilder(symlinks=True, with_pip=own_pip).create(folder)
    packages = _packages(folder)
    lines = [f"import site; site.addsitedir({path!r})\n" for path in _here()]
    (packages / LAYERS).write_text("".join(lines), encoding="utf-8")
    constraints = folder / "constraints.txt"
    constraints.write_text(_kept(), encoding="utf-8")
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input"]
    command += ["--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
    command += ["--constraint", str(constraints), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, env=_alone())
    if done.returncode:
        raise CannotRun(f"it could not be installed: {_complaint(done.stderr or done.stdout)}")
    found = importlib.metadata.distributions(path=[str(packages)])
    holds = {each.name.lower().replace("_", "-"): each.version for each in found}
    size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink())
    stamp = {"requirements": wanted, "holds": dict(sorted(holds.items())), "bytes": size}
    (folder / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")


def _read(folder: Path) -> Environment:
    stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    return Environment(folder, stamp["holds"], stamp["bytes"])


def _digest(wanted: list[str]) -> str:
    """Of all that decides what an environment is: what is asked for, and what it is laid over."""
    here = sorted(f"{each.name}=={each.version}" for each in importlib.metadata.distributions())
    known = [*wanted, platform.python_version(), sys.prefix, *_here(), *here]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]


def _here() -> list[str]:
    """The site-packages of the Python that runs this."""
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [folder for folder in [*site.getsitepackages(), *user] if Path(folder).is_dir()]


def _packages(folder: Path) -> Path:
    paths = {"base": str(folder), "platbase": str(folder)}
    return Path(sysconfig.get_path("purelib", "venv", vars=paths))


def _kept() -> str:
    """Constraints: no release brings another PyTorch, which is gigabytes."""
    try:
        return f"torch=={importlib.metadata.version('torch').partition('+')[0]}\n"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _alone() -> dict[str, str]:
    """Variables for pip: nothing that would have it look elsewhere for what is installed."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "PIP_REQUIRE_VIRTUALENV", "PIP_TARGET", "PIP_USER")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def _complaint(output: str) -> str:
    """The line of pip's that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip says nothing"])[0 if errors else -1][:300]


def _remove_abandoned(folder: Path) -> None:
    """What runs left that were killed."""
    for path in folder.glob(f"{UNFINISHED}*"):
        pid = path.name.removeprefix(UNFINISHED).partition("-")[0]
        if not (pid.isdigit() and psutil.pid_exists(int(pid))):
            shutil.rmtree(path, ignore_errors=True)
