"""What moved between two traces of one model, site by site, beside the noise and the oracle.

A harmless implementation is within half a limit of the oracle: limits are twice the largest ratio
that harmless ones reached. Two of them are therefore within one limit of each other, and a site has
moved where the difference of two releases, over the reference's own rounding error there, is beyond
its limit. With `bits` it has moved where any bit is another one. Tokens that went to other experts
within noise are left out, as in a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..answers import culprit
from ..comparison import MODULE
from ..limits import Limits
from ..metrics import relative_error
from ..policy import effective_noise
from ..ties import Ties
from ..traces import MODES, TAKEN, Tensors, site_named
from ..types import FAIL, ISOLATED, JUDGED_KINDS, PASS, Evidence, Probe, Site, SiteDiff

_ORDER = {"embedding": 0, "block": 1, "norm": 2, "logits": 3}


@dataclass(frozen=True)
class Move:
    """One site of one probe in two releases.

    `difference` is relative, `ratio` over `noise`; `before` and `after` are the ratios of the two
    releases' own errors against the oracle; `bits` is the share of numbers that are not the same.
    """

    site: Site
    mode: str
    probe: str
    difference: float
    noise: float
    limit: float
    before: float
    after: float
    bits: float
    moved: bool
    note: str | None = None

    @property
    def ratio(self) -> float:
        return self.difference / self.noise


class Recorded:
    """What a release computed, in a trace file; what is not finite counts as a value too."""

    def __init__(self, path: Path) -> None:
        self._tensors = Tensors(path)
        self.device = self._tensors.metadata["device"]

    def sites(self, probe: str, mode: str) -> Iterator[tuple[Site, np.ndarray]]:
        """Every site with its array (T, features), in no order."""
        for key, site in self._keys.get((probe, mode), {}).items():
            yield site, self._tensors.read(key, finite=False)

    def taken(self, probe: str) -> list[int]:
        """Greedy tokens after a probe's prompt; none where it has none."""
        key = f"{probe}/{TAKEN}"
        return self._tensors.read(key).tolist() if key in self._tensors.names else []

    @cached_property
    def _keys(self) -> dict[tuple[str, str], dict[str, Site]]:
        found: dict[tuple[str, str], dict[str, Site]] = {}
        for key in self._tensors.names:
            probe, _, rest = key.partition("/")
            mode, _, name = rest.partition("/")
            site = site_named(name) if mode in MODES else None
            if site is not None:
                found.setdefault((probe, mode), {})[key] = site
        return found


def moves_of(
    before: Recorded,
    after: Recorded,
    evidence: Mapping[Probe, Evidence],
    limits: Limits,
    dtype: str,
    bits: bool = False,
    kinds: Sequence[str] = JUDGED_KINDS,
) -> list[Move]:
    """Every judged site of every probe, isolated ones first, each mode in execution order."""
    found = []
    for mode in sorted(MODES, key=lambda mode: mode != ISOLATED):
        for probe, known in evidence.items():
            if mode == ISOLATED and probe.scales is None:
                continue  # a golden of whole arrays: its blocks were fed what no file holds
            sides = [dict(side.sites(probe.name, mode)) for side in (before, after)]
            ties = [_ties(side, known, mode, dtype) for side in sides]
            for site, noise in known.noise[mode].items():
                if site.kind in kinds and all(site in side for side in sides):
                    measure = MODULE if site.kind == MODULE else mode
                    limit = limits.row(measure, dtype, probe.kind).limit
                    pair = sides[0][site], sides[1][site]
                    rows = _kept(ties, site, len(pair[0]))
                    least = effective_noise(noise, dtype)
                    place = site, mode, probe.name
                    found.append(_move(place, pair, rows, known, least, limit, bits))
    return found


def first(moves: Sequence[Move]) -> Move | None:
    """The first site that moved, in execution order, on the probe that shows it best.

    Isolated ones come first: there a difference is the site's own.
    """
    moved = [move for move in moves if move.moved]
    where = min(map(_place, moved), default=None)
    return max((m for m in moved if _place(m) == where), key=_size, default=None)


def first_module(modules: Sequence[Move], bits: bool) -> Move | None:
    """The first module that moved, of one block's in execution order; None where none did.

    With limits, one that is far less beyond its own than the worst is passed over.
    """
    if bits:
        return next((move for move in modules if move.moved), None)
    diffs = [_as_diff(move) for move in modules]
    found = culprit(diffs)
    return next((m for m, d in zip(modules, diffs, strict=True) if d is found), None)


def largest(moves: Sequence[Move]) -> Move | None:
    """The site whose difference is nearest to its limit, or farthest beyond."""
    return max(moves, key=lambda move: (_size(move) / move.limit, move.bits), default=None)


def _as_diff(move: Move) -> SiteDiff:
    return SiteDiff(
        move.site, move.mode, move.probe, "", move.difference, move.noise, move.ratio, move.limit,
        FAIL if move.moved else PASS,
    )  # fmt: skip


def _move(
    place: tuple[Site, str, str],
    pair: tuple[np.ndarray, np.ndarray],
    rows: np.ndarray | slice,
    evidence: Evidence,
    noise: float,
    limit: float,
    bits: bool,
) -> Move:
    site, mode, probe = place
    before, after = pair
    expected = evidence.expected[mode][site]

    def error(side: np.ndarray) -> float:
        if side.shape != evidence.shape(site, mode):
            return math.inf
        return relative_error(evidence.view(site, side)[rows], expected[rows]) / noise

    was, now = error(before), error(after)
    if before.shape != after.shape:
        note = f"shape {before.shape} before, {after.shape} after"
        return Move(site, mode, probe, math.inf, noise, limit, was, now, 1.0, True, note)
    other = _other_bits(before, after)
    # What is not finite in the same place is no difference.
    difference = relative_error(after[rows], before[rows]) if other.any() else 0.0
    moved = bool(other.any()) if bits else not difference / noise <= limit
    return Move(site, mode, probe, difference, noise, limit, was, now, float(other.mean()), moved)


def _other_bits(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where two arrays of one shape do not hold the same bits."""
    as_integers = np.dtype(f"u{before.dtype.itemsize}")
    a, b = np.ascontiguousarray(before), np.ascontiguousarray(after)
    return a.view(as_integers) != b.view(as_integers)


def _ties(sites: Mapping[Site, np.ndarray], evidence: Evidence, mode: str, dtype: str) -> Ties:
    ties = Ties(evidence, mode, dtype)
    for site, array in sites.items():
        ties.see(site, array)
    return ties


def _kept(ties: Sequence[Ties], site: Site, length: int) -> np.ndarray | slice:
    """Rows at which neither release went to other experts."""
    tied = [mask for each in ties if (mask := each.tied(site)) is not None]
    return ~np.logical_or.reduce(tied) if tied else slice(0, length)


def _place(move: Move) -> tuple[bool, int, int]:
    return move.mode != ISOLATED, _ORDER.get(move.site.kind, 4), move.site.block or 0


def _size(move: Move) -> float:
    return math.inf if math.isnan(move.ratio) else move.ratio
