"""`harness bisect`: run the releases that have to be run, and say which one moved the numbers.

Prints nothing. A release that crashes, hangs or lacks what the engine calls is passed over, as git
bisect does on "skip".
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from engine.files import find_model
from engine.userdata import cache_folder

from .. import environment
from ..comparison import MODULE
from ..errors import BadOption
from ..limits import Limits
from ..sides import Progress, default_reference
from ..types import ISOLATED
from .environments import CannotRun, Environment, Environments
from .findings import MOVED, SAME, Findings, Step, Tried
from .ground import Ground
from .line import line_of
from .moves import Move, Recorded, first, first_module, largest, moves_of
from .packages import candidate_for
from .recording import SECONDS, Record, Task, recorder
from .search import search


def bisect(
    model: str | Path,
    package: str,
    good: str,
    bad: str,
    candidate: str | None = None,
    reference: str | None = None,
    dtype: str = "float32",
    *,
    device: str | None = None,
    bits: bool = False,
    every: bool = False,
    versions: Sequence[str] | None = None,
    cache: Path | None = None,
    seconds: float = SECONDS,
    memory: float | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
    into: Findings | None = None,
) -> Findings:
    """Find the release of a package, from `good` to `bad`, that moved what `candidate` computes.

    `bits` asks for any other bit in place of a difference beyond the limits. `every` runs all
    releases, each against the one before it, in place of a search. `versions` are tried between the
    ends in place of those of the package index. `cache` holds the environments; `seconds` and
    `memory` (GB) bound one run. `into` is filled as answers come. `progress(done, total, what)` and
    `notice(text)` are told what goes on. Raises EngineError for bad input, and where one of the two
    ends cannot be run.
    """
    begin = time.perf_counter()
    found = into if into is not None else Findings("", "", "", "", "", False, "", "")
    found.package, found.model, found.dtype, found.bits = package, str(model), dtype, bits
    found.candidate = candidate_for(package, candidate)
    found.reference = reference or default_reference()
    line = line_of(package, good, bad, versions)
    found.old, found.new = line.versions[0], line.versions[-1]
    found.swapped, found.skipped = line.swapped, line.skipped
    found.line = list(line.versions)
    folder = (cache or cache_folder() / "bisect").expanduser()
    found.folder = str(folder)
    environments = Environments(folder, package, notice)
    task = Task(package, str(model), found.candidate, dtype, device, revision, seconds, memory)
    found.environment = environment.describe()
    ground = Ground(find_model(model, revision), found.reference, dtype, progress)
    found.reference = ground.reference
    with tempfile.TemporaryDirectory(prefix="harness-bisect-") as scratch:
        runs = Runs(ground, environments, recorder(task), Path(scratch), found, progress)
        runs.ends(line.versions)
        if found.unsteady is None:
            runs.all(line.versions) if every else runs.turn(line.versions)
    order = {version: i for i, version in enumerate(line.versions)}
    found.tried.sort(key=lambda tried: order[tried.release])
    found.seconds = time.perf_counter() - begin
    return found


class Runs:
    """The releases run so far, and what is made of them."""

    def __init__(
        self,
        ground: Ground,
        environments: Environments,
        record: Record,
        scratch: Path,
        found: Findings,
        progress: Progress | None,
    ) -> None:
        self._ground, self._environments, self._record = ground, environments, record
        self._scratch, self._found = scratch, found
        self._tell = progress or (lambda done, total, what: None)
        self._probes = ground.write_probes(scratch / "probes.safetensors")
        self._environment: dict[str, Environment] = {}
        self._recorded: dict[str, Recorded] = {}
        self._limits: Limits | None = None

    def ends(self, line: Sequence[str]) -> None:
        """Run both ends, the old one twice: what does not repeat itself cannot be searched."""
        old, new = line[0], line[-1]
        for end in (old, new):
            took = self._run(end)
            if isinstance(took, str):
                raise BadOption(
                    f"{self._found.package} {end}, an end, could not be run: {took}; name another"
                )
            if end == old:
                again = self._again(old)
                self._limits = self._ground.limits(again.device, self._found.candidate)
                self._found.device = again.device
                self._found.calibration = self._limits.describe()
                moves = self._moves(self._recorded[old], again)
                self._tried(old, moves, None, took)
                if any(move.moved for move in moves):
                    at = largest(moves)
                    assert at is not None
                    self._found.unsteady = (
                        f"{old} does not repeat itself: run twice, {at.site.path} differs by "
                        f"{at.ratio:.3g} times the noise"
                    )
                    return
            else:
                self._tried(new, self._between(old, new), old, took)

    def turn(self, line: Sequence[str]) -> None:
        """Search for the release at which the numbers of the old end are left."""
        old, new = line[0], line[-1]
        if not self._has_moved(old, new):
            return
        low, high = search(len(line), lambda i: self._asked(line[i], old))
        self._step(line, low, high, old)
        after = line[high]
        self._found.further = after != new and self._has_moved(after, new)

    def all(self, line: Sequence[str]) -> None:
        """Run all releases; every one that moved against the last one that could be run."""
        new = self._found.tried.pop()  # which is told anew, against the one before it
        last = line[0]
        for release in line[1:-1]:
            last = last if self._asked(release, last) is None else release
        self._tried(line[-1], self._between(last, line[-1]), last, new.seconds)
        ran = [i for i, release in enumerate(line) if release in self._recorded]
        for low, high in pairwise(ran):
            if self._has_moved(line[low], line[high]):
                self._step(line, low, high, line[low])
        if not self._found.steps and self._has_moved(line[0], line[-1]):
            turn = next(pair for pair in pairwise(ran) if self._has_moved(line[0], line[pair[1]]))
            self._step(line, *turn, line[0])

    def _asked(self, release: str, against: str) -> bool | None:
        """Whether a release moved; None where it could not be run."""
        took = self._run(release)
        if isinstance(took, str):
            self._found.tried.append(Tried(release, None, took))
            return None
        moves = self._between(against, release)
        self._tried(release, moves, against, took)
        return any(move.moved for move in moves)

    def _run(self, release: str) -> str | float:
        """Run a release on all probes: the seconds it took, or why it could not be."""
        self._tell(len(self._found.tried), None, f"{self._found.package} {release}")
        try:
            made = self._environments.of(release)
            self._environment[release] = made
            self._found.size += made.size
            self._found.made += made.seconds > 0
            begin = time.perf_counter()
            out = self._scratch / f"{release}.safetensors"
            self._record(made, release, self._probes, out, None)
            self._recorded[release] = Recorded(out)
        except CannotRun as why:
            return str(why)
        return time.perf_counter() - begin

    def _again(self, release: str) -> Recorded:
        out = self._scratch / "again.safetensors"
        try:
            self._record(self._environment[release], release, self._probes, out, None)
        except CannotRun as why:
            raise BadOption(
                f"{self._found.package} {release}, an end, could not be run again: {why}"
            ) from None
        return Recorded(out)

    def _between(self, before: str, after: str) -> list[Move]:
        return self._moves(self._recorded[before], self._recorded[after])

    def _moves(self, before: Recorded, after: Recorded) -> list[Move]:
        assert self._limits is not None, "known once an end was run"
        known, dtype, bits = self._ground.evidence, self._found.dtype, self._found.bits
        return moves_of(before, after, known, self._limits, dtype, bits)

    def _has_moved(self, before: str, after: str) -> bool:
        return any(move.moved for move in self._between(before, after))

    def _tried(self, release: str, moves: Sequence[Move], against: str | None, took: float) -> None:
        moved = against is not None and any(move.moved for move in moves)
        made = self._environment[release].seconds
        bits = max(move.bits for move in moves)
        error = max(move.after / move.limit for move in moves)
        answer = MOVED if moved else SAME
        self._found.tried.append(
            Tried(release, answer, None, against, largest(moves), bits, error, took, made)
        )

    def _step(self, line: Sequence[str], low: int, high: int, old: str) -> None:
        """Keep what there is to say of two neighbours between which numbers moved."""
        before, after, since = line[low], line[high], line[low]
        moves = self._between(before, after)
        if not any(move.moved for move in moves):  # it took several releases
            since, moves = old, self._between(old, after)
        at = first(moves)
        assert at is not None, "it moved"
        shares = [(move.before / move.limit, move.after / move.limit) for move in moves]
        self._found.steps.append(
            Step(
                before, after, since, tuple(line[low + 1 : high]), tuple(moves), at,
                self._module(since, after, at),
                (max(share for share, _ in shares), max(share for _, share in shares)),
                self._greedy(since, after), self._brought(since, after),
            )
        )  # fmt: skip

    def _module(self, before: str, after: str, at: Move) -> Move | None:
        """The first module that moved inside the block that did."""
        if at.site.kind != "block" or at.mode != ISOLATED or at.note:
            return None
        assert at.site.block is not None and self._limits is not None
        self._tell(len(self._found.tried), None, f"inside block {at.site.block}")
        evidence = self._ground.inside(self._ground.probe(at.probe), at.site.block)
        if not evidence:
            return None
        probes = self._ground.write_probes(self._scratch / "one.safetensors", at.probe)
        sides = []
        for release in (before, after):
            out = self._scratch / f"{release}-inside.safetensors"
            try:
                self._record(self._environment[release], release, probes, out, at.site.block)
            except CannotRun:
                return None  # it ran before; the block is as near as it gets
            sides.append(Recorded(out))
        dtype, bits = self._found.dtype, self._found.bits
        one, other = sides
        moves = moves_of(one, other, evidence, self._limits, dtype, bits, kinds=(MODULE,))
        return first_module(moves, bits)

    def _greedy(self, before: str, after: str) -> tuple[int, int | None]:
        """How many tokens both took, and the first that differs."""
        for probe in self._ground.evidence:
            one, other = (self._recorded[each].taken(probe.name) for each in (before, after))
            if one and other:
                pairs = enumerate(zip(one, other, strict=False))
                return min(len(one), len(other)), next((i for i, (a, b) in pairs if a != b), None)
        return 0, None

    def _brought(self, before: str, after: str) -> dict[str, tuple[str | None, str | None]]:
        """Other packages whose version is another one in the two environments."""
        one, other = (self._environment[each].holds for each in (before, after))
        found = {}
        for name in sorted({*one, *other} - {self._found.package}):
            here = environment.version(name)
            pair = one.get(name, here), other.get(name, here)
            if pair[0] != pair[1] and pair != (before, after):
                found[name] = pair
        return found
