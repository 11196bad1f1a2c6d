"""Environments: made once, whole or not at all, over what is here and without changing it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from engine.errors import EngineError
from harness.bisect import packages
from harness.bisect.child import check_origin
from harness.bisect.environments import STAMP, CannotRun, Environments


def ask(environment, code: str) -> str:
    command = [str(environment.python), "-P", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def of(folder, release="1.0", package="tinyport"):
    return Environments(folder, package).of(release)


@pytest.fixture
def no_pip(monkeypatch):
    """Installing nothing, at once."""
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr("subprocess.run", lambda *arguments, **options: done)


# Each installs with pip, which takes a second.


def test_it_holds_the_release_and_shows_the_rest(index, tmp_path):
    index.add("1.0", "NUMBER = 1", requires=("tinydep",))
    index.add("3.0", package="tinydep")
    made = of(tmp_path / "cache")
    assert dict(made.holds) == {"tinyport": "1.0", "tinydep": "3.0"}
    told = ask(made, "import sys, tinyport, numpy; print(tinyport.__file__, numpy.__file__)")
    own, shared = told.split()
    assert own.startswith(str(made.folder)) and shared == sys.modules["numpy"].__file__
    assert made.size < 1_000_000
    assert json.loads((made.folder / STAMP).read_text())["requirements"] == ["tinyport==1.0"]


def test_a_release_hides_the_one_that_is_here_and_leaves_it_alone(index, tmp_path):
    here = importlib.metadata.version("sniffio")
    index.add("99.0", "NUMBER = 99", package="sniffio")
    made = of(tmp_path / "cache", "99.0", "sniffio")
    assert ask(made, "import sniffio; print(sniffio.NUMBER)") == "99"
    code = "import importlib.metadata as m; print(m.version('sniffio'))"
    assert ask(made, code) == "99.0"
    assert importlib.metadata.version("sniffio") == here
    import sniffio

    assert not hasattr(sniffio, "NUMBER") and os.path.exists(sniffio.__file__ or "")


def test_it_is_made_once(no_pip, tmp_path):
    one = of(tmp_path / "cache")
    other = of(tmp_path / "cache")
    assert one.folder == other.folder and one.seconds > 0 and other.seconds == 0
    assert one.holds == other.holds


def test_another_python_below_makes_another_one(no_pip, tmp_path, monkeypatch):
    one = of(tmp_path / "cache")
    more = SimpleNamespace(name="new", version="1")
    known = [*importlib.metadata.distributions(), more]
    monkeypatch.setattr("importlib.metadata.distributions", lambda **where: [] if where else known)
    assert of(tmp_path / "cache").folder != one.folder


def test_an_interruption_leaves_nothing(no_pip, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("subprocess.run", stop)
        with pytest.raises(KeyboardInterrupt):
            of(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert of(tmp_path / "cache").folder.is_dir()


def test_what_a_killed_run_left_goes_and_that_of_a_living_one_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for pid in (ended.pid, os.getpid()):
        (tmp_path / f".unfinished-{pid}-abc" / "bin").mkdir(parents=True)
    Environments(tmp_path, "tinyport")
    assert [path.name for path in tmp_path.iterdir()] == [f".unfinished-{os.getpid()}-abc"]


def test_one_that_was_damaged_is_made_anew(no_pip, tmp_path):
    made = of(tmp_path / "cache")
    (made.folder / STAMP).unlink()
    assert of(tmp_path / "cache").seconds > 0


def test_a_release_brings_no_other_torch(index, tmp_path, monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "1.0" if name == "torch" else version(name)
    )
    index.add("2.0", package="torch")
    index.add("1.0", requires=("torch==2.0",))
    with pytest.raises(CannotRun, match="could not be installed"):
        of(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_pip_says_is_the_reason(index, tmp_path, monkeypatch):
    index.add("1.0")
    with pytest.raises(CannotRun, match=r"could not be installed: .*tinyport==2\.0"):
        of(tmp_path / "cache", "2.0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(CannotRun) as caught:
        of(tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_sources_are_not_built(index, tmp_path):
    index.link("tinyport-1.0.tar.gz")
    with pytest.raises(CannotRun):
        of(tmp_path / "cache")


@pytest.mark.parametrize(
    ("installed", "wanted"),
    [
        ("mlx-cpu", "mlx[cpu]==0.32.0"),
        ("mlx-cuda-13", "mlx[cuda13]==0.32.0"),
        (None, "mlx==0.32.0"),  # macOS, where the back end is no extra
    ],
)
def test_mlx_comes_with_the_build_that_is_here(monkeypatch, installed, wanted):
    monkeypatch.setattr(packages, "version", lambda name: "1" if name == installed else None)
    assert packages.requirements("mlx", "0.32.0") == [wanted]
    assert packages.requirements("mlx-lm", "0.32.0") == ["mlx-lm==0.32.0"]


# Whether it was this release that ran


def test_the_release_that_ran_has_to_be_the_one_asked_for(monkeypatch):
    import packaging.version as known

    check_origin("packaging", importlib.metadata.version("packaging"))
    with pytest.raises(EngineError, match=r"not 1\.0"):
        check_origin("packaging", "1.0")
    mixed = SimpleNamespace(__file__="/elsewhere/packaging/new.py")
    monkeypatch.setitem(sys.modules, "packaging.new", mixed)
    with pytest.raises(EngineError, match=r"packaging\.new came from /elsewhere"):
        check_origin("packaging", importlib.metadata.version("packaging"))
    assert known.__file__


def test_a_candidate_that_does_not_use_the_package_is_refused(monkeypatch):
    monkeypatch.delitem(sys.modules, "zizmor", raising=False)
    with pytest.raises(EngineError, match="imports nothing of zizmor"):
        check_origin("zizmor", importlib.metadata.version("zizmor"))
