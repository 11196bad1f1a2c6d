"""Runs the blocks of a page, in order, in a folder that holds a copy of what the tree ships.

`harness` and `engine` are called in this process, which saves seconds of imports for each; whatever
else a page shows is run by bash, with this environment's programs first on its path.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr
from importlib import import_module
from pathlib import Path

from parity_tests.docs.options import ENVIRONMENT
from parity_tests.docs.pages import ROOT, Block, Command

COPIED = ("golden", "docs", "ci", "benchmarks", "README.md", "constraints.txt")
BY_BASH = re.compile(r"[|&;<>$`]|^[A-Z_0-9]+=")
SECONDS = 240


class Wrong(AssertionError):
    """A page shows what is not so; the message names page, line and command."""


class Shell:
    """A folder in which the commands of one page are run."""

    def __init__(self, folder: Path, monkeypatch, capfd) -> None:
        self.folder, self._patch, self._capture = folder, monkeypatch, capfd
        self.home = folder / "home"
        self.ran: list[str] = []
        for name in COPIED:
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, place)
        monkeypatch.chdir(folder)
        # A module that the page edits within a second would be read from its stale cache.
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        for name in ("XDG_DATA_HOME", "MLX_PARITY_CERTIFICATES", "MLX_PARITY_MODEL_DIRS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.variables().items():
            monkeypatch.setenv(name, value)

    def variables(self) -> dict[str, str]:
        """Nothing of this machine's is read or written, and `harness` is the one under test."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HOME": str(self.folder / "huggingface"),
            "OLLAMA_MODELS": str(self.folder / "ollama"),
            "HOME": str(self.home),
        }

    def page(self, found: Iterable[Block], full: bool) -> None:
        """Run what is to be run of a page. Raises Wrong at the first that is not as shown."""
        printed: str | None = None
        for block in found:
            if "write" in block.said:
                (self.folder / block.said["write"]).write_text(block.text)
            elif "edit" in block.said:
                self._edit(block)
            elif "output" in block.said:
                if printed is not None:
                    check_shown(block.lines, printed, block.place)
            elif block.is_shell:
                runs = "not run" not in block.said and (full or "full run" not in block.said)
                printed = self._block(block) if runs else None

    def _block(self, block: Block) -> str:
        for command in block.before():
            self._expect(block, command, 0)
        status = int(block.said.get("exit status", 0))
        printed = ""
        for command, last in _with_last(block.commands()):
            printed = self._expect(block, command, status if last else 0)
            if command.shown and "output varies" not in block.said:
                check_shown(command.shown, printed, f"{block.page}:{command.at}")
        return printed

    def _expect(self, block: Block, command: Command, wanted: int) -> str:
        status, printed = self.run(command.line)
        if status != wanted:
            raise Wrong(
                f"{block.page}:{command.at}: {command.line}\n"
                f"exit status {status}, not {wanted}; it printed:\n{printed}"
            )
        return printed

    def run(self, line: str) -> tuple[int, str]:
        """Exit status of a command, and all that it printed."""
        self.ran.append(line)
        status, printed = self._anyhow(ENVIRONMENT.sub("", line))
        return status, printed.replace(str(self.home), "/root")  # whose home the pages show

    def _anyhow(self, line: str) -> tuple[int, str]:
        words = shlex.split(line, comments=True)
        if words and words[0] in ("harness", "engine") and not BY_BASH.search(line):
            return self._here(words)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        return done.returncode, done.stdout

    def _here(self, words: list[str]) -> tuple[int, str]:
        from engine.console import run

        path, modules = list(sys.path), set(sys.modules)
        self._capture.readouterr()
        try:
            with redirect_stderr(sys.stdout):  # in the order in which a terminal shows them
                status = run(import_module(f"{words[0]}.cli").app, words[0], words[1:])
        finally:
            sys.path[:] = path
            for name in set(sys.modules) - modules:  # the page's own, which it may edit
                if str(self.folder) in str(getattr(sys.modules[name], "__file__", "")):
                    del sys.modules[name]
        return status, self._capture.readouterr().out

    def _edit(self, block: Block) -> None:
        file = self.folder / block.said["edit"]
        old = "".join(line[1:] + "\n" for line in block.lines if line[:1] in ("-", " "))
        new = "".join(line[1:] + "\n" for line in block.lines if line[:1] in ("+", " "))
        text = file.read_text()
        if (times := text.count(old)) != 1:
            raise Wrong(f"{block.place}: what is taken away is in {file.name} {times} times")
        file.write_text(text.replace(old, new))


def check_shown(shown: Iterable[str], printed: str, place: str) -> None:
    """Raise Wrong unless what is shown was printed, numbers, line breaks and machine apart.

    A line `...` stands for any lines.
    """
    text, at = shape(printed), 0
    for part in re.split(r"^\s*\.\.\.\s*$", "\n".join(shown), flags=re.MULTILINE):
        wanted = shape(part)
        found = text.find(wanted, at)
        if found < 0:
            raise Wrong(f"{place}: shown and not printed:\n{part}\nprinted was:\n{printed}")
        at = found + len(wanted)


def shape(text: str) -> str:
    """What does not depend on the machine: the words, one space between any two.

    Without numbers, bars, which of many probes was worst, the machine's description, and the
    limits' origin.
    """
    text = text if text.endswith("\n") else f"{text}\n"
    text = re.sub(r"^environment: .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^(Linux|macOS|Darwin) \S+ \S+, (.+\n)+", "MACHINE\n", text, flags=re.MULTILINE)
    text = re.sub(r"^limits: [^$]*?(?=^[\d.]+ s, peak)", "LIMITS\n", text, flags=re.MULTILINE)
    text = re.sub(r"[█·│]{5,}((?: +[-+e.\d]+){4}) .*", r"BAR\1", text)
    text = re.sub(r"probe\s+'[^']+'", "PROBE", text)
    text = re.sub(r"\b[0-9a-f]{8,}\b", "0", text)
    text = re.sub(r"[+-]?\d[\d.,]*(e[+-]?\d+)?", "0", text)
    return " ".join(text.split())


def _with_last(found: list[Command]) -> Iterable[tuple[Command, bool]]:
    return ((command, command is found[-1]) for command in found)
