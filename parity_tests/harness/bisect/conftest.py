"""A package index in a folder, of wheels made here, and nothing else in pip's sight."""

from __future__ import annotations

import os
import zipfile
from html import escape
from pathlib import Path

import pytest

# The engine behind a function that shows its blocks; a release sets SCALE, of block 1's output.
PORT = """
import mlx.core as mx
from engine.model import load

decoder = load("tiny-llama", dtype="float32").decoder
PATHS = {"embed": "model.embed_tokens", "norm": "model.norm"}

def logits(tokens, tap):
    def shown(name, value):
        kind, _, rest = name.partition(".")
        if kind == "blocks" and rest.isdigit():
            return tap(f"model.layers.{rest}", value * SCALE if rest == "1" else value)
        return tap(PATHS[name], value) if name in PATHS else value
    return decoder(mx.array([tokens]), tap=shown)
"""


class Index:
    """A simple index, as HTML: `add` releases to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.links: dict[str, list[str]] = {}

    def add(
        self,
        version: str,
        source: str = "",
        package: str = "tinyport",
        *,
        tag: str = "py3-none-any",
        yanked: str | None = None,
        pythons: str = "",
        requires: tuple[str, ...] = (),
    ) -> None:
        """A wheel whose only module is `source`."""
        page = self.folder / package
        page.mkdir(parents=True, exist_ok=True)
        name = f"{package}-{version}-{tag}.whl"
        info = f"{package}-{version}.dist-info"
        about = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        about += "".join(f"Requires-Dist: {line}\n" for line in requires)
        files = {
            f"{package}.py": source,
            f"{info}/METADATA": about,
            f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{each},,\n" for each in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(page / name, "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)
        self.link(name, package, yanked, pythons)

    def link(
        self, name: str, package: str = "tinyport", yanked: str | None = None, pythons: str = ""
    ) -> None:
        """A file on the page; it need not be there."""
        more = "" if yanked is None else f' data-yanked="{escape(yanked)}"'
        more += f' data-requires-python="{escape(pythons)}"' if pythons else ""
        links = self.links.setdefault(package, [])
        links.append(f'<a href="{name}"{more}>{name}</a>')
        (self.folder / package).mkdir(parents=True, exist_ok=True)
        page = self.folder / package / "index.html"
        page.write_text(f"<!DOCTYPE html><body>{''.join(links)}</body>")


def only(index: Index, set_variable, delete_variable) -> None:
    """Have pip see an index and nothing else, and not wait for what is not there."""
    set_variable("PIP_CONFIG_FILE", os.devnull)
    set_variable("PIP_INDEX_URL", index.folder.as_uri())
    set_variable("PIP_RETRIES", "0")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CONSTRAINT"):
        delete_variable(name, raising=False)


@pytest.fixture
def index(tmp_path, monkeypatch) -> Index:
    made = Index(tmp_path / "simple")
    made.folder.mkdir()
    only(made, monkeypatch.setenv, monkeypatch.delenv)
    return made
