"""The releases to choose from: the two ends, and what lies between them that can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from packaging.version import InvalidVersion, Version

from ..errors import BadOption
from .index import Release, releases

NEAR = 3  # releases that an error names


@dataclass(frozen=True)
class Line:
    """Versions from the oldest to the newest; `skipped` says why others between are left out."""

    versions: tuple[str, ...]
    swapped: bool
    skipped: dict[str, str] = field(default_factory=dict)


def line_of(package: str, good: str, bad: str, only: Sequence[str] | None = None) -> Line:
    """The line from one end to the other, whichever is older.

    With `only` between the ends there are those versions, and no index is asked. Raises BadOption.
    """
    ends = {"--good": _version("--good", good), "--bad": _version("--bad", bad)}
    one, other = ends.values()
    if one == other:
        raise BadOption(f"--good {good} and --bad {bad} are the same release")
    old, new = sorted((one, other))
    if only is not None:
        named = {_version("--versions", each) for each in only}
        outside = sorted(each for each in named if not old <= each <= new)
        if outside:
            raise BadOption(f"--versions {outside[0]}: it is not between {old} and {new}")
        return Line(tuple(map(str, sorted({old, new, *named}))), one > other)
    known = {release.version: release for release in releases(package)}
    for option, end in ends.items():
        _check_end(package, option, end, known)
    between = [release for version, release in known.items() if old < version < new]
    tried = [release.version for release in between if release.skipped is None]
    skipped = {str(r.version): r.skipped for r in between if r.skipped is not None}
    return Line(tuple(map(str, sorted([old, new, *tried]))), one > other, skipped)


def _version(option: str, text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        raise BadOption(f"{option} {text!r} is no version: write it as 0.32.4") from None


def _check_end(package: str, option: str, end: Version, known: dict[Version, Release]) -> None:
    """Raise BadOption for an end that is not there, or cannot be installed here."""
    usable = [version for version, release in known.items() if release.unusable is None]
    below = [str(version) for version in sorted(usable) if version < end][-NEAR:]
    above = [str(version) for version in sorted(usable) if version > end][:NEAR]
    near = f"releases near it: {', '.join([*below, *above]) or 'none'}"
    if end not in known:
        raise BadOption(f"{option} {end}: {package} has no such release; {near}")
    if (why := known[end].unusable) is not None:
        raise BadOption(f"{option} {end} of {package} cannot be installed: {why}; {near}")
