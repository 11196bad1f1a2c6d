"""What every release is measured against: probes, oracle, noise and limits, from here and now.

The reference is loaded when it is asked and let go of, so that a model is not in memory twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.files import ModelFiles
from engine.whole import write_whole

from ..backends import Request
from ..environment import device_class
from ..errors import ReferenceUnavailable
from ..limits import Limits, find_limits
from ..memory import size_of
from ..products import growth
from ..reference import Reference, with_scales
from ..sides import Progress, load_reference
from ..traces import PROBES, as_bytes, described
from ..types import Evidence, Probe

SUMS = {"engine": "mlx", "mlx-lm": "mlx", "torch": "torch"}  # who adds up, see products.py


class Ground:
    """`evidence` by probe, one of each kind. Raises ReferenceUnavailable where there is no oracle:
    then no noise is known, and no size could be told from it."""

    def __init__(
        self, files: ModelFiles, reference: str, dtype: str, progress: Progress | None = None
    ) -> None:
        tell = progress or (lambda done, total, what: None)
        self._files, self._asked, self.dtype = files, reference, dtype
        tell(0, None, "loading the reference")
        source = self._load()
        self.reference = source.name
        self._longest = size_of(files).longest
        self._growth = source.growth(self._longest)
        self.evidence: dict[Probe, Evidence] = {}
        self._given: list[Probe] = []  # as they are written, with exponents
        for done, probe in enumerate(source.probes):
            tell(done, len(source.probes), f"reference, probe {probe.name}")
            evidence = source.evidence(probe)
            if not evidence.has_oracle:
                raise ReferenceUnavailable(
                    f"reference {source.name} has no oracle: install PyTorch, or use --reference "
                    "golden"
                )
            given = probe if probe.scales is not None else with_scales(probe, evidence)
            if given != probe and not source.recorded:
                probe, evidence = given, source.evidence(given)
            self._given.append(given)
            self.evidence[probe] = evidence

    @property
    def isolated(self) -> bool:
        """Whether blocks can be judged each by itself: not by a golden that holds whole arrays."""
        return all(probe.scales is not None for probe in self.evidence)

    def write_probes(self, path: Path, name: str | None = None) -> Path:
        """Write the probes for a release to run, all or the one of a name."""
        arrays = {}
        for probe in self._given:
            if name in (None, probe.name):
                arrays |= described(probe)
        write_whole(path, as_bytes(arrays, PROBES, reference=self.reference))
        return path

    def limits(self, device: str, candidate: str) -> Limits:
        """Those of a device class, for a model with sums as long as this one's."""
        own = growth(SUMS.get(candidate, "plain"), self._longest, self.dtype)
        found = find_limits(device_class(device))
        return found.widened(self._longest, own / self._growth)

    def inside(self, probe: Probe, block: int) -> Mapping[Probe, Evidence]:
        """Evidence of the modules of a block, which compute from its seeded input; of no probe
        where the reference is a file."""
        evidence = self._load().inside(probe, block, {}, self.evidence[probe])
        return {} if evidence is None else {probe: evidence}

    def probe(self, name: str) -> Probe:
        return next(probe for probe in self.evidence if probe.name == name)

    def _load(self) -> Reference:
        return load_reference(self._asked, Request(self._files, self.dtype), prompts=1)
