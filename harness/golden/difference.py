"""Two goldens side by side: what an upgrade, another machine or another reference moved.

The oracle must not move at all beyond its own rounding; the noise may, from machine to machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadGolden
from ..metrics import relative_error
from ..policy import effective_noise
from ..traces import name_of
from ..types import PROPAGATED, Evidence, Probe
from .format import Content
from .manifest import NAME, check_hash, contained, read_manifest

WORTH = 0.1  # of the noise: a move that changes no answer is smaller
NO_ORIGIN = ("file", "sha256", "bytes", "command", "source")


@dataclass(frozen=True)
class Moved:
    """One site: how far the oracle's values moved, relatively, on the probe where they did most."""

    name: str
    probe: str
    moved: float
    ratio: float  # of the larger noise
    noise: tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """What is not the same of two goldens: where they come from, and their sites."""

    origin: dict[str, tuple[str, str]]
    sites: list[Moved]
    other_probes: list[str]  # those that only one has, or with other tokens
    tokens: bool  # whether the ids of the probe texts moved

    @property
    def moved(self) -> bool:
        """Whether an answer could be another one."""
        return bool(self.other_probes) or self.tokens or any(s.ratio > WORTH for s in self.sites)

    @property
    def sentence(self) -> str:
        if self.other_probes:
            return f"other probes: {', '.join(self.other_probes[:6])}"
        if self.tokens:
            return "the ids of the probe texts differ"
        worst = max(self.sites, key=lambda site: site.ratio, default=None)
        if worst is None:
            return "they have no probe in common"
        if worst.moved == 0:
            return "the oracle did not move at all"
        return f"the oracle moved by at most {worst.ratio:.2g} of the noise, at {worst.name}"


def difference(one: Path, other: Path) -> Difference:
    """Compare two golden files with their entries. Raises BadGolden."""
    (entry, a), (beside, b) = read_golden(one), read_golden(other)
    if entry["weights"] != beside["weights"]:
        raise BadGolden(f"{one} and {other} are of different weights: nothing can be compared")
    if a.sketch and b.sketch and a.sketch != b.sketch:
        columns = f"{a.sketch.columns} and {b.sketch.columns} columns"
        raise BadGolden(f"{one} and {other} are sketches of {columns}: nothing can be compared")
    probes = {probe.name: probe for probe in b.probes}
    worst: dict[str, Moved] = {}
    odd = sorted({p.name for p in a.probes} ^ set(probes))
    for probe in a.probes:
        if probe.name in odd:
            continue
        if probes[probe.name].tokens != probe.tokens:
            odd.append(probe.name)
            continue
        for moved in _sites(probe, _evidence(a, probe), _evidence(b, probes[probe.name]), entry):
            if moved.name not in worst or moved.ratio > worst[moved.name].ratio:
                worst[moved.name] = moved
    tokens = a.facts is not None and b.facts is not None and a.facts.ids != b.facts.ids
    return Difference(_origin(entry, beside), list(worst.values()), odd, tokens)


def read_golden(path: Path) -> tuple[dict[str, Any], Content]:
    """A golden file and its entry in the manifest of its folder. Raises BadGolden."""
    folder = path.resolve().parent.parent
    known = read_manifest(folder)["goldens"] if (folder / NAME).exists() else []
    for entry in known:
        if (folder / contained(entry["file"], folder)).resolve() == path.resolve():
            check_hash(path, entry)
            return entry, Content(path, entry["dtype"])
    raise BadGolden(f"{path} is not in the manifest of {folder}: harness golden list shows them")


def _evidence(content: Content, probe: Probe) -> Evidence:
    found = content.evidence(probe)
    assert found is not None, "a content knows its own probes"
    return found


def _sites(probe: Probe, a: Evidence, b: Evidence, entry: Mapping[str, Any]) -> list[Moved]:
    """Propagated sites of one probe, brought into one form where one is a sketch."""
    found = []
    for site, expected in a.expected[PROPAGATED].items():
        actual = b.expected[PROPAGATED].get(site)
        if actual is None or site.kind in ("experts", "groups", "router"):
            continue
        moved = relative_error(a.view(site, actual), b.view(site, expected))
        noise = (a.noise[PROPAGATED].get(site, 0.0), b.noise[PROPAGATED].get(site, 0.0))
        ratio = moved / effective_noise(max(noise), entry["dtype"])
        found.append(Moved(name_of(site), probe.name, moved, ratio, noise))
    return found


def _origin(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What the entries say differently."""
    flat = [_flat(entry) for entry in (one, other)]
    keys = [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]
    return {key: (flat[0].get(key, ""), flat[1].get(key, "")) for key in keys}


def _flat(entry: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in entry.items():
        if key in NO_ORIGIN:
            continue
        if isinstance(value, Mapping):
            found |= {f"{key}: {k}": str(v) for k, v in value.items()}
        else:
            found[key] = value if isinstance(value, str) else json.dumps(value)
    return found
