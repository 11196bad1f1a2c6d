"""Make ./.venv and run a command in it: `python3 ci/environment.py [COMMAND [ARGUMENTS ...]]`.

The first run installs this project with every extra, at the versions of constraints.txt; later runs
find a stamp and start the command at once. Needs Python 3.11 to 3.14 and nothing else. Which build
of MLX suits the machine is chosen here; MLX_PARITY_BUILD=cpu, cuda13 or none overrides it.
Knows nothing of what it runs. Messages go to stderr, pip's output to .venv/install.log.
"""

# Syntax of Python 3.7 only: an older `python3` has to get as far as handing over to a newer one.
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "mlx-parity.json"  # written last: an install without it was interrupted
UNFINISHED = VENV / "mlx-parity.unfinished"
LOG = VENV / "install.log"
LOCK = ROOT / ".cache" / "environment.lock"  # outside .venv, which may be made anew under it
CONSTRAINTS = ROOT / "constraints.txt"
EXTRAS = ("reference", "serve", "report", "dev")

# The versions every line of constraints.txt has wheels for.
OLDEST, NEWEST = (3, 11), (3, 14)
OTHER_PYTHONS = ("python3.13", "python3.12", "python3.11", "python3.14")

# One library file, three owners: an environment holds exactly one of them.
MLX_BUILDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
# What the mlx-cuda-13 wheels ask for: https://ml-explore.github.io/mlx/build/html/install.html
CUDA13_DRIVER = 580
CUDA13_CAPABILITY = (7, 5)
CUDA13_GLIBC = (2, 35)


class Unusable(Exception):
    """Set-up cannot go on; the message is the one line that says what to do."""


def main(arguments: list[str]) -> None:
    if arguments[:1] in (["-h"], ["--help"]):
        print((__doc__ or "").strip())
        return
    try:
        use_suitable_python()
        if not is_ready():
            with locked():
                if not is_ready():  # another run may have done it while this one waited
                    make_ready()
        if arguments:
            run(arguments)
    except (Unusable, OSError) as problem:
        say(str(problem))
        sys.exit(2)
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from here")
        sys.exit(130)


# The Python that makes the environment


def use_suitable_python() -> None:
    """Return if this Python can make the environment, else start again with one that can."""
    if suitable(sys.version_info[:2]) and can_make_venv(sys.executable):
        return
    for name in OTHER_PYTHONS:
        other = shutil.which(name)
        # A shim of pyenv exists for versions that are not active, and fails when it is run.
        if other and can_make_venv(other):
            os.execv(other, [other, str(Path(__file__).resolve()), *sys.argv[1:]])
    version = "{}.{}".format(*sys.version_info)
    lacks = "lacks the venv module" if suitable(sys.version_info[:2]) else "does not fit"
    raise Unusable(
        f"Python 3.11, 3.12, 3.13 or 3.14 with venv is needed; {sys.executable} is {version} and "
        f"{lacks}: install one (macOS: brew install python@3.13; "
        "Debian, Ubuntu: apt install python3 python3-venv)"
    )


def suitable(version: tuple[int, ...]) -> bool:
    return OLDEST <= tuple(version[:2]) <= NEWEST


def can_make_venv(python: str) -> bool:
    """Whether it runs, has a fitting version, and has what `python -m venv` needs."""
    code = (
        f"import sys, venv, ensurepip; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})"
    )
    if python == sys.executable:
        try:
            import ensurepip  # noqa: F401
            import venv  # noqa: F401
        except ImportError:
            return False
        return True
    try:
        return subprocess.run([python, "-c", code], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


# The build of MLX


def mlx_extra(system: str, gpus: list[tuple[int, tuple[int, int]]], glibc: tuple[int, ...]) -> str:
    """The extra that brings MLX's build for a machine: "cpu", "cuda13", or "" where none is needed.

    `gpus` are the driver's major version and the compute capability of each NVIDIA GPU.
    """
    if system != "Linux":
        return ""
    fits = [d >= CUDA13_DRIVER and capability >= CUDA13_CAPABILITY for d, capability in gpus]
    return "cuda13" if fits and all(fits) and glibc >= CUDA13_GLIBC else "cpu"


def parse_gpus(answer: str) -> list[tuple[int, tuple[int, int]]]:
    """Read `nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader`."""
    rows = re.findall(r"^\s*(\d+)\.[\d.]*\s*,\s*(\d+)\.(\d+)\s*$", answer, re.MULTILINE)
    return [(int(driver), (int(major), int(minor))) for driver, major, minor in rows]


def nvidia_gpus() -> list[tuple[int, tuple[int, int]]]:
    """What nvidia-smi answers; nothing where it is missing, fails or hangs."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(answer.stdout) if answer.returncode == 0 else []


def chosen_extra() -> str:
    """`mlx_extra` of this machine, unless MLX_PARITY_BUILD says otherwise."""
    asked = os.environ.get("MLX_PARITY_BUILD")
    if asked is not None:
        if asked not in ("cpu", "cuda13", "none"):
            raise Unusable(f"MLX_PARITY_BUILD={asked!r} is not one of cpu, cuda13, none")
        return "" if asked == "none" else asked
    glibc = tuple(int(part) for part in re.findall(r"\d+", platform.libc_ver()[1]))
    return mlx_extra(platform.system(), nvidia_gpus(), glibc)


def machine() -> str:
    """What the choice of a build rests on, read without asking the driver, which takes a second."""
    driver = Path("/proc/driver/nvidia/version")
    version = driver.read_text() if driver.exists() else ""
    asked = os.environ.get("MLX_PARITY_BUILD", "")
    return "|".join([platform.system(), shutil.which("nvidia-smi") or "", version, asked])


# The environment


def is_ready() -> bool:
    """Whether the stamp fits this tree and machine."""
    return PYTHON.exists() and wanted().items() <= read_stamp().items()


def wanted() -> dict[str, str]:
    return {"root": str(ROOT), "machine": machine(), "files": digest()}


def make_ready() -> None:
    """Make or mend .venv, install, and write the stamp."""
    begin = time.monotonic()
    stamp, extra = wanted(), chosen_extra()
    make_venv(moved=read_stamp().get("root", str(ROOT)) != str(ROOT))
    if UNFINISHED.exists():
        say("an earlier set-up did not finish: repairing it")
        remove_half_installed()
    UNFINISHED.touch()
    with contextlib.suppress(FileNotFoundError):
        STAMP.unlink()
    LOG.write_text("")
    install(extra)
    STAMP.write_text(json.dumps({**stamp, "extra": extra}) + "\n")
    UNFINISHED.unlink()
    say(f"set up in {time.monotonic() - begin:.0f} s")


def read_stamp() -> dict[str, str]:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def digest() -> str:
    """Hash of all that decides what is installed, this file included."""
    total = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)):
        total.update(path.read_bytes() + b"\0")
    return total.hexdigest()


def make_venv(moved: bool) -> None:
    """Make .venv where there is none that runs; one that somebody else made is kept.

    Made anew: when its Python has gone, and when the tree was moved, because every script in it
    names the old folder.
    """
    if PYTHON.exists() and not moved:
        version = ask("import sys; print(*sys.version_info[:2], sep='.')")
        if version and not suitable(tuple(map(int, version.split(".")))):
            raise Unusable(f"{VENV} is of Python {version}, not 3.11 to 3.14: delete it")
        pip = "import pip", "import ensurepip; ensurepip.bootstrap()"
        if version and any(ask(f"{way}; print('ok')") for way in pip):
            return
    say("making .venv" + (" anew" if VENV.exists() else ""))
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True
    )
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["no message"]
        raise Unusable(f"{sys.executable} -m venv failed: {last[0]}")


def ask(code: str) -> str:
    """What .venv's Python prints for this code; empty if it does not run."""
    try:
        done = subprocess.run([str(PYTHON), "-I", "-c", code], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def install(extra: str) -> None:
    """Install the project, editable, after what builds it, so that pip fetches nothing unpinned."""
    distributions = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    installed = ask(distributions).lower().replace("_", "-").split()
    builds = [name for name in MLX_BUILDS if name in installed]
    if builds and builds != [{"cpu": "mlx-cpu", "cuda13": "mlx-cuda-13"}.get(extra, "")]:
        # Taking one away deletes the file that the other owns too, so all go.
        say(f"removing {' and '.join(builds)}")
        pip("uninstall", "--yes", *builds)
    build = {"cpu": "MLX for the CPU", "cuda13": "MLX for CUDA 13"}.get(extra, "MLX")
    say(f"installing {build}, PyTorch and the rest (pip's output: .venv/install.log)")
    pip("install", "hatchling")
    extras = ",".join(filter(None, (extra, *EXTRAS)))
    pip("install", "--no-build-isolation", "--editable", f"{ROOT}[{extras}]")


def pip(command: str, *arguments: str) -> None:
    """Run pip, its output into the log; show the log's tail if it fails."""
    line = [str(PYTHON), "-m", "pip", command, "--no-input", "--disable-pip-version-check"]
    if command == "install":
        line += ["--constraint", str(CONSTRAINTS)]
    # close_fds: pip inherits the lock, and so holds it even when this process is killed.
    with LOG.open("ab") as log, subprocess.Popen(
        [*line, *arguments], stdout=log, stderr=log, close_fds=False
    ) as process:
        wait(process)
    if process.returncode:
        tail = LOG.read_text(errors="replace").strip().splitlines()[-15:]
        print("\n".join("  " + text for text in tail), file=sys.stderr)
        raise Unusable(
            f"pip {command} failed (above: the end of {LOG}); run the same command again"
        )


def wait(process: subprocess.Popen) -> None:
    """Wait; on a terminal, show the time and what pip is at."""
    begin, shown = time.monotonic(), sys.stderr.isatty()
    while True:
        try:
            process.wait(timeout=1 if shown else None)
            break
        except subprocess.TimeoutExpired:
            width = shutil.get_terminal_size().columns - 1
            last = LOG.read_text(errors="replace").strip().splitlines()[-1:] or [""]
            text = f"  {time.monotonic() - begin:.0f} s  {last[0].strip()}"[:width]
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    if shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def remove_half_installed() -> None:
    """Remove packages that pip was installing when it was stopped, so that it starts them again.

    A wheel's RECORD is written after all its other files; pip moves what it replaces to `~name`.
    """
    for folder in VENV.glob("lib/python*/site-packages/*"):
        half = folder.suffix == ".dist-info" and not (folder / "RECORD").exists()
        if half or folder.name.startswith("~"):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked():
    """Let one set-up run at a time, as long as it or the pip that it started lives."""
    import fcntl

    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another set-up of this tree")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# The command


def run(arguments: list[str]) -> None:
    """Become the command, with .venv/bin first on PATH."""
    path = os.pathsep.join([str(VENV / "bin"), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(VENV)}
    environment.pop("PYTHONHOME", None)
    if not shutil.which(arguments[0], path=path):
        raise Unusable(f"{arguments[0]!r} is neither in .venv/bin nor on PATH")
    sys.stdout.flush()
    os.execvpe(arguments[0], arguments, environment)


def say(message: str) -> None:
    print(f"environment: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
