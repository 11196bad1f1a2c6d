"""Where code stands, for reports: FILE:LINE NAME of a function."""

from __future__ import annotations

import inspect
import os
from typing import Any


def code_of(function: Any, name: str) -> str | None:
    """FILE:LINE NAME, the file relative to its package's parent; None without source."""
    try:
        file, line = inspect.getsourcefile(function), inspect.getsourcelines(function)[1]
    except (OSError, TypeError):
        return None
    package = function.__module__.count(".") + 1
    return f"{os.sep.join(str(file).split(os.sep)[-package:])}:{line} {name}"
