"""Defects to plant in a candidate: one file per kind, found by scanning this folder.

A file has `FAULTS`, a tuple of `Fault`. Each is a mistake that ports really make, or one like it,
put into a live model through the doors of `Patient`; nothing that judges knows any of them. Those
marked equivalent change nothing that matters, and must not be reported.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._patient import Patient


class NotApplicable(Exception):
    """This model or candidate has no place for the fault: no such part, setting or cache."""


@dataclass(frozen=True)
class Fault:
    """One defect.

    `inject(patient, block)` plants it, or raises NotApplicable. `role` is where it is: the engine's
    name below a block ("attn", "mlp.down"; "" the block itself), or of a part outside ("embed",
    "norm", "head"). `where` is "block" (in the one given), "blocks" (in all), "model" (outside
    them), or the name of the check that alone can see it ("cache", "batch", "tokens", ...).
    `source` is its id in the list of defects that were found in public ports, where it is one.
    """

    name: str
    what: str
    inject: Callable[[Patient, int], None]
    role: str
    where: str = "block"
    source: str = ""
    equivalent: bool = False


def all_faults() -> dict[str, Fault]:
    """Every fault by its name, KIND.NAME, in alphabetical order of kinds."""
    found: dict[str, Fault] = {}
    for info in pkgutil.iter_modules(__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        for fault in module.FAULTS:
            name = f"{info.name}.{fault.name}"
            if name in found:
                raise ValueError(f"two faults are called {name}")
            found[name] = fault
    return found
