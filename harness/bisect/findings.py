"""What a bisection found, as data. Nothing here judges, prints or raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..types import ERROR, EXIT_STATUS, FAIL, INCONCLUSIVE, PASS
from .moves import Move

SAME, MOVED = "same", "moved"
_STATUS = {SAME: EXIT_STATUS[PASS], MOVED: EXIT_STATUS[FAIL]}

WORSE, BETTER, BOTH_OFF, BOTH_RIGHT = "worse", "better", "off before and after", "right both times"


@dataclass(frozen=True)
class Tried:
    """One release that was run: how far it is from what it was compared with, and from the oracle.

    `answer` is same, moved, or None with `why` where it could not be run. `largest` is the site
    nearest to its limit, or farthest beyond, of the difference to release `against` (None: to
    itself, run again); `bits` the share of numbers that are not the same, and `error` the largest
    share of its limit that its error against the oracle takes, each at whatever site it is largest.
    """

    release: str
    answer: str | None
    why: str | None = None
    against: str | None = None
    largest: Move | None = None
    bits: float = 0.0
    error: float | None = None
    seconds: float = 0.0
    installing: float = 0.0


@dataclass(frozen=True)
class Step:
    """Two releases between which numbers moved, with nothing that could be run in between.

    `moves` are those since release `since`: the one before, or an earlier one, where differences of
    several releases had to add up. `first` is the first site that moved, `module` the first module
    inside its block; `errors` are the largest shares of a limit that an error against the oracle
    takes, before and after. `greedy` is how many tokens were taken, and which is the first that
    differs (None). `brought` are other packages that are there at another version.
    """

    before: str
    after: str
    since: str
    between: tuple[str, ...]
    moves: tuple[Move, ...]
    first: Move | None
    module: Move | None
    errors: tuple[float, float]
    greedy: tuple[int, int | None]
    brought: Mapping[str, tuple[str | None, str | None]]

    @property
    def direction(self) -> str:
        """Whether the change was for the worse, by which of the two is within its limits."""
        before, after = (share <= 1 for share in self.errors)
        return {
            (True, False): WORSE,
            (False, True): BETTER,
            (False, False): BOTH_OFF,
            (True, True): BOTH_RIGHT,
        }[before, after]


@dataclass
class Findings:
    """All of a bisection.

    `line` are the releases to choose from, oldest first; `skipped` those between the ends that are
    not among them, and why; `further` says that the newest end's numbers are not those of the
    release that was found.
    """

    package: str
    model: str
    candidate: str
    reference: str
    dtype: str
    bits: bool
    old: str
    new: str
    swapped: bool = False
    device: str = ""
    line: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    tried: list[Tried] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    further: bool = False
    unsteady: str | None = None  # why nothing can be told: a release does not repeat itself
    calibration: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    folder: str = ""
    size: int = 0  # bytes of all environments used
    made: int = 0  # environments
    seconds: float = 0.0
    error: str | None = None

    @property
    def verdict(self) -> str:
        if self.error is not None:
            return ERROR
        if self.unsteady or any(step.between for step in self.steps):
            return INCONCLUSIVE
        return MOVED if self.steps else SAME

    @property
    def exit_status(self) -> int:
        """0 nothing moved, 1 a release was found, 2 it could not be run, 3 inconclusive."""
        return _STATUS.get(self.verdict, EXIT_STATUS.get(self.verdict, 2))
