"""Ties between experts: where a router's choice is within noise, either choice is right.

A token that goes to other experts is another computation, whose difference says nothing about
rounding. So tokens whose experts are not the oracle's are left out of a site's error, provided that
the oracle's own margin between the experts chosen and the next best is within noise; where it is
not, the token stays, and shows the defect. In later blocks all tokens after such a one attend to
it, so that they are left out as well where errors travel.
"""

from __future__ import annotations

import numpy as np

from .metrics import rms
from .policy import TIE, effective_noise
from .types import ISOLATED, Evidence, Site


class Ties:
    """Tokens to leave out, as one forward pass in one mode is observed."""

    def __init__(self, evidence: Evidence, mode: str, dtype: str) -> None:
        self._evidence, self._mode, self._dtype = evidence, mode, dtype
        self.state: dict[int, np.ndarray] = {}  # block -> (T,) booleans

    def see(self, site: Site, actual: np.ndarray) -> None:
        """Compare the chosen experts of a block, (T, k) ids in any order."""
        if site.kind != "experts" or site.block is None:
            return
        expected = self._evidence.expected[self._mode].get(site)
        if expected is None or actual.shape != expected.shape:
            return
        other = (np.sort(actual, axis=1) != np.sort(expected, axis=1)).any(axis=1)
        self.state[site.block] = other & self._close(site.block, expected.astype(int))

    def tied(self, site: Site) -> np.ndarray | None:
        """(T,) true for rows that do not count at a site; None where there are none."""
        found = []
        if site.kind in ("block", "module") and site.block in self.state:
            found.append(self.state[site.block])
        if self._mode != ISOLATED and site.kind != "embedding":
            earlier = (t for k, t in self.state.items() if site.block is None or k < site.block)
            found += [np.logical_or.accumulate(tied) for tied in earlier]
        return np.logical_or.reduce(found) if found else None

    def kept(self, site: Site) -> np.ndarray | slice:
        """What selects the rows that count."""
        tied = self.tied(site)
        return slice(None) if tied is None else ~tied

    def count(self, site: Site) -> int:
        """How many tokens are left out at a site."""
        tied = self.tied(site)
        return 0 if tied is None else int(tied.sum())

    def close(self) -> np.ndarray | None:
        """(T,) true where some block's choice was within noise, whoever made it."""
        found = list(self.margins().values())
        return np.logical_or.reduce(found) if found else None

    def margins(self) -> dict[int, np.ndarray]:
        """Per block with experts, (T,) true where the oracle's choice was within noise."""
        return {
            site.block: self._close(site.block, expected.astype(int))
            for site, expected in self._evidence.expected[self._mode].items()
            if site.kind == "experts" and site.block is not None
        }

    def _close(self, block: int, chosen: np.ndarray) -> np.ndarray:
        """(T,): whether the oracle's margin between experts chosen and not is within noise.

        False where what the router shows does not explain the choice: then no margin is known.
        """
        known = self._evidence.close.get(self._mode, {}).get(block)
        if known is not None:
            return known
        router, expected = Site("router", block), self._evidence.expected[self._mode]
        logits = expected.get(router)
        if logits is None or chosen.shape[1] >= logits.shape[1]:
            return np.zeros(len(chosen), bool)
        taken = np.zeros(logits.shape, bool)
        np.put_along_axis(taken, chosen, True, axis=1)
        groups = expected.get(Site("groups", block), np.full((len(chosen), 1), np.inf))
        there = np.repeat(groups > 0, logits.shape[1] // groups.shape[1], axis=1)
        others = np.where(there & ~taken, logits, -np.inf).max(1)
        margin = np.where(taken, logits, np.inf).min(1) - others
        noise = effective_noise(self._evidence.noise[self._mode].get(router, 0.0), self._dtype)
        limit = TIE * noise * rms(logits)
        # From the edge to either side; a group has the noise of the two scores it counts by.
        near = np.abs(groups).min(1) <= limit
        explained = (margin >= 0) & (there | ~taken).all(1)
        return explained & (near | (margin <= limit))
