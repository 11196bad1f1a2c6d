"""The releases of a package, as the indexes that pip is told to use have them.

Reads the simple API, as JSON or HTML (https://packaging.python.org/en/latest/specifications/
simple-repository-api), with pip's own configuration, because pip itself shows neither what was
yanked nor what has no wheel here. Installs nothing.
"""

from __future__ import annotations

import ast
import os
import platform
import ssl
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import sys_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from ..errors import IndexUnavailable

PYPI = "https://pypi.org/simple"
ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
SECONDS = 30.0


@dataclass(frozen=True)
class Release:
    """A version on the index; `skipped` says why it is not tried unless it is asked for by name,
    `unusable` why it cannot be installed here at all."""

    version: Version
    skipped: str | None = None
    unusable: str | None = None


@dataclass(frozen=True)
class File:
    """One file of an index: its name, the Pythons it is for, and why it was yanked, if it was."""

    name: str
    pythons: str = ""
    yanked: str | None = None


def releases(package: str) -> list[Release]:
    """Every release that the indexes have, oldest first. Raises IndexUnavailable."""
    settings = pip_settings()
    found: dict[Version, list[File]] = {}
    for file in _files(canonicalize_name(package), settings):
        version = _version(file.name, package)
        if version is not None:
            found.setdefault(version, []).append(file)
    if not found:
        places = ", ".join(_places(settings)) or "no index"
        raise IndexUnavailable(f"package {package!r}: {places} has no release of it")
    tags = frozenset(sys_tags())
    return [_release(version, found[version], tags) for version in sorted(found)]


def pip_settings() -> Mapping[str, list[str]]:
    """Where pip looks: index-url, extra-index-url, find-links, no-index, cert.

    From PIP_* variables, else from its files; as pip does, a command's section before the global.
    """
    try:
        told = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True, text=True, timeout=SECONDS,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    known: dict[str, str] = {}
    for line in told.splitlines():
        key, equals, value = line.partition("=")
        if equals and value[:1] in "'\"":
            known[key] = str(ast.literal_eval(value))
    found = {}
    for name in ("index-url", "extra-index-url", "find-links", "no-index", "cert"):
        variable = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        value = variable or known.get(f"install.{name}") or known.get(f"global.{name}") or ""
        found[name] = value.split()
    return found


def _release(version: Version, files: list[File], tags: frozenset[Any]) -> Release:
    """What its files say of a version."""
    wheels = [file for file in files if file.name.endswith(".whl")]
    unusable = skipped = None
    here = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    fitting = [file for file in wheels if parse_wheel_filename(file.name)[3] & tags]
    if not wheels:
        unusable = "it has no wheel, sources alone"
    elif not fitting:
        unusable = f"it has no wheel for {here}"
    elif not any(_fits(file.pythons) for file in fitting):
        unusable = f"it needs Python {fitting[0].pythons}"
    if all(file.yanked is not None for file in files):
        skipped = f"yanked: {files[0].yanked}" if files[0].yanked else "yanked"
    elif version.is_prerelease:
        skipped = "a pre-release"
    return Release(version, skipped or unusable, unusable)


def _fits(pythons: str) -> bool:
    try:
        return SpecifierSet(pythons).contains(platform.python_version(), prereleases=True)
    except InvalidSpecifier:
        return True


def _version(name: str, package: str) -> Version | None:
    """The version in a file's name, where it is a file of the package."""
    try:
        parse = parse_wheel_filename if name.endswith(".whl") else parse_sdist_filename
        found, version = parse(name)[:2]
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None
    return version if found == canonicalize_name(package) else None


def _places(settings: Mapping[str, list[str]]) -> list[str]:
    """Every index, the main one first."""
    if settings["no-index"] and settings["no-index"][0].lower() in ("1", "true", "yes", "on"):
        return []
    return [*(settings["index-url"] or [PYPI]), *settings["extra-index-url"]]


def _files(package: str, settings: Mapping[str, list[str]]) -> Iterator[File]:
    for place in _places(settings):
        yield from _page(f"{place.rstrip('/')}/{package}/", settings)
    for place in settings["find-links"]:
        yield from _page(place, settings)


def _page(place: str, settings: Mapping[str, list[str]]) -> Iterable[File]:
    """The files of a page, or of a folder; none where there is no such page."""
    split = urlsplit(place)
    if split.scheme in ("http", "https"):
        return _remote(place, settings)
    path = Path(unquote(split.path)) if split.scheme == "file" else Path(place).expanduser()
    page = path / "index.html" if path.is_dir() else path
    if page.is_file():
        return _of_html(page.read_text(encoding="utf-8", errors="replace"))
    return [File(each.name) for each in path.iterdir()] if path.is_dir() else []


def _remote(address: str, settings: Mapping[str, list[str]]) -> list[File]:
    import httpx2

    shown = urlsplit(address)._replace(netloc=urlsplit(address).netloc.rpartition("@")[2]).geturl()
    try:
        cert = " ".join(settings["cert"])
        verify = ssl.create_default_context(cafile=cert) if cert else True
        answer = httpx2.get(
            address, headers={"Accept": ACCEPT}, follow_redirects=True, timeout=SECONDS,
            verify=verify,
        )  # fmt: skip
        if answer.status_code == 404:
            return []
        answer.raise_for_status()
        if "json" in answer.headers.get("content-type", ""):
            return list(_of_json(answer.json()))
        return _of_html(answer.text)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise IndexUnavailable(
            f"the index {shown} cannot be read ({why}): name the releases with --versions, or "
            "another index with PIP_INDEX_URL"
        ) from None


def _of_json(page: Mapping[str, Any]) -> Iterator[File]:
    for entry in page["files"]:
        yanked = entry.get("yanked", False)
        reason = None if yanked is False else yanked if isinstance(yanked, str) else ""
        yield File(str(entry["filename"]), entry.get("requires-python") or "", reason)


def _of_html(page: str) -> list[File]:
    links = _Links()
    links.feed(page)
    return links.files


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.files: list[File] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "a" and (address := known.get("href")):
            name = unquote(urlsplit(urldefrag(address)[0]).path.rpartition("/")[2])
            yanked = (known["data-yanked"] or "") if "data-yanked" in known else None
            self.files.append(File(name, known.get("data-requires-python") or "", yanked))
