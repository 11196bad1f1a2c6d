"""Packages whose releases are compared: what runs them, and what else they need here."""

from __future__ import annotations

from dataclasses import dataclass

from engine.console import BUILDS

from ..environment import version
from ..errors import BadOption


@dataclass(frozen=True)
class Package:
    """`candidates` are the backends that use it, the first by default."""

    candidates: tuple[str, ...]


PACKAGES = {
    "mlx": Package(("engine", "mlx-lm")),
    "mlx-lm": Package(("mlx-lm",)),
    "transformers": Package(("torch",)),
}
# Runs in a release's environment whatever the package is.
FUNCTION = "python:"


def candidate_for(package: str, asked: str | None) -> str:
    """The backend to run. Raises BadOption for one that does not use the package."""
    known = PACKAGES.get(package)
    if asked is not None and asked.startswith(FUNCTION):
        return asked
    if known is None:
        raise BadOption(
            f"--package {package!r}: there are {', '.join(PACKAGES)}; for another one name a "
            "function that uses it, --candidate python:MODULE:FUNCTION"
        )
    if asked is not None and asked not in known.candidates:
        raise BadOption(
            f"--candidate {asked!r}: what uses {package} is {' or '.join(known.candidates)}, or "
            "python:MODULE:FUNCTION"
        )
    return asked or known.candidates[0]


def requirements(package: str, release: str) -> list[str]:
    """What pip is asked for. Of MLX on Linux the same build as here, at the same version."""
    if package != "mlx":
        return [f"{package}=={release}"]
    build = next((name for name in BUILDS if version(name)), None)
    extra = f"[{build.removeprefix('mlx-').replace('-', '')}]" if build else ""
    return [f"mlx{extra}=={release}"]
