"""Parity questions: one file per check, found by scanning this folder.

A file has `ORDER`, an integer that says when it is asked, and `run(comparison) -> CheckResult`.
The module's name is the check's name. Every check reads what it needs from the comparison and
prints nothing. Where the candidate's `limits` name a check, it is skipped with that reason. A file
may have `applies(comparison) -> bool`, for questions that only some candidates can be asked.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType

from ..errors import BadOption


def all_checks() -> dict[str, ModuleType]:
    """Every check by name, in the order they are asked."""
    modules = {
        info.name: importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
        if not info.name.startswith("_")
    }
    return dict(sorted(modules.items(), key=lambda item: item[1].ORDER))


def chosen(names: Sequence[str] | None) -> dict[str, ModuleType]:
    """The checks named, or all; BadOption lists the names there are."""
    checks = all_checks()
    for name in names or ():
        if name not in checks:
            near = difflib.get_close_matches(name, checks, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadOption(f"check {name!r}: {hint}there are {', '.join(checks)}")
    return {name: check for name, check in checks.items() if not names or name in names}
