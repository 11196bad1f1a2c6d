"""Goldens on disk: what a reference and the oracle computed, with where it came from.

One file per model, reference and dtype, in `traces/`; `format.py` knows what is in it,
`manifest.py` what each belongs to. Nothing is read from a file before its hash is right.
"""

from __future__ import annotations

import datetime
import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.files import ModelFiles, find_model
from engine.weights.plain import plain_weights
from engine.whole import write_whole

from .. import environment
from ..backends import Request
from ..errors import BadGolden, BadOption
from ..executors import Executor, Task
from ..memory import Notice, check_disk, check_streamed, part_by_part, size_of
from ..reference import Reference, Shapes, with_scales
from ..sides import Progress, installed, load_reference, load_streamed_reference
from ..sketch import COLUMNS, Sketch
from ..streaming import Course, Stream, new_evidence
from ..sweep import sweep
from ..traces import as_bytes
from ..types import Evidence, Probe, TokenFacts
from .format import SCHEMA, Content, pack, sketched
from .manifest import NAME as MANIFEST
from .manifest import (
    alone,
    check_hash,
    check_model,
    contained,
    find_golden,
    identity,
    install,
    model_name,
    part_of,
    read_manifest,
)

LARGE = 5_000_000  # bytes of whole arrays, beyond which a golden holds sketches
MOST_COLUMNS = 1024
Found = tuple[Reference, list[tuple[Probe, Evidence]]]


class GoldenReference:
    """A recorded reference, at the dtype it was recorded at.

    `argument` names whose recording ("torch" by default). Raises BadGolden when there is none for
    exactly these weights, or when it is not whole.
    """

    recorded = True

    def __init__(self, files: ModelFiles, dtype: str, argument: str = "") -> None:
        self.dtype, self.files = dtype, files
        self.entry, self.file = find_golden(files, dtype, argument or "torch")
        self.name = f"golden:{self.entry['reference']}"
        check_hash(self.file, self.entry)
        self._content = Content(self.file, dtype)

    @property
    def probes(self) -> list[Probe]:
        return list(self._content.probes)

    def evidence(self, probe: Probe) -> Evidence:
        """The oracle's arrays, with the noise of the recorded reference."""
        found = self._content.evidence(probe)
        if found is None:
            raise BadGolden(f"probe {probe.name!r} is not in the golden {self.entry['file']}")
        return found

    def growth(self, length: int) -> float:
        return self._content.growth

    def more(self, kind: str, i: int) -> None:
        return None

    def inside(self, probe: Probe, block: int, shapes: Shapes, known: Evidence) -> None:
        return None

    def weights(self) -> Mapping[str, Any]:
        """The model's own tensors: `find_golden` has seen that they are the recorded ones."""
        return plain_weights(self.files, self.dtype)

    def tokens(self) -> TokenFacts | None:
        return self._content.facts


def record(
    model: str,
    reference: str,
    dtype: str,
    folder: Path,
    *,
    columns: int | None = None,
    stream: bool | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
    notice: Notice | None = None,
    command: str | None = None,
) -> Path:
    """Run a live reference on every probe and write the golden; return its path.

    `columns` are those of its sketches, 0 for whole arrays; None takes whole arrays where they come
    to less than LARGE bytes. `stream` runs it part by part, None where it would not fit into
    memory: then the golden holds sketches, and no greedy tokens. `command` is what the golden says
    it was made by; None is this process's own. An interrupted recording leaves the old golden as it
    was.
    """
    if columns is not None and not (columns == 0 or 1 <= columns <= MOST_COLUMNS):
        raise BadOption(f"--columns {columns}: 0 for whole arrays, or up to {MOST_COLUMNS}")
    request = Request(find_model(model, revision), dtype)
    if reference.partition(":")[0] in ("golden", "trace"):
        raise BadGolden(f"reference {reference!r} is a recording already: name what is to be run")
    if not installed("torch", "transformers"):
        raise BadGolden("a golden holds PyTorch's oracle: pip install 'mlx-parity[reference]'")
    # What would refuse the golden refuses the work.
    (folder / "traces").mkdir(parents=True, exist_ok=True)
    check_disk(folder / "traces", LARGE)
    if (folder / MANIFEST).exists():
        read_manifest(folder)
    if part_by_part(request.files, dtype, True, stream, notice):
        if columns == 0:
            raise BadOption("--columns 0: whole arrays need the whole model in memory")
        live, found = _streamed(request, reference, columns or COLUMNS, progress, notice)
    else:
        live, found = _whole(request, reference, columns, progress)
    arrays, metadata = pack(found, live.tokens(), live.growth(size_of(request.files).longest))
    return _write(folder, request.files, reference, dtype, arrays, metadata, command)


def _whole(
    request: Request, reference: str, columns: int | None, progress: Progress | None
) -> Found:
    """Evidence of all probes, one after the other."""
    live = load_reference(reference, request, prompts=1)
    found: list[tuple[Probe, Evidence]] = []
    for index, probe in enumerate(live.probes):
        if progress:
            progress(index, len(live.probes), probe.name)
        evidence = live.evidence(probe)
        if columns is None:
            columns = COLUMNS if _whole_bytes(probe, evidence, live.probes) > LARGE else 0
        if columns:
            probe = with_scales(probe, evidence)
            evidence = sketched(live.evidence(probe), probe, Sketch(columns), request.dtype)
        found.append((probe, evidence))
    return live, found


def _streamed(
    request: Request,
    reference: str,
    columns: int,
    progress: Progress | None,
    notice: Notice | None,
) -> Found:
    """Evidence of all probes together, part by part, as sketches."""
    live, oracle, twin = load_streamed_reference(reference, request)
    check_streamed(request.files, request.dtype, True, live.probes, notice)
    sketch = Sketch(columns)
    courses = [Course(probe, new_evidence(), seeded=True) for probe in live.probes]
    Stream(
        courses, request.dtype, oracle=oracle, twin=twin, keep=lambda site, array: sketch(array)
    ).run(progress=progress)
    found = []
    for course in courses:
        probe = replace(course.probe, scales=tuple(course.scales))
        found.append((probe, sketched(course.evidence, probe, sketch, request.dtype)))
    return live, found


def _whole_bytes(probe: Probe, evidence: Evidence, probes: Sequence[Probe]) -> int:
    """What a golden of whole arrays would take, as one of its probes shows."""
    arrays = [array for sites in evidence.expected.values() for array in sites.values()]
    a_token = sum(array.nbytes for array in arrays) // len(probe.tokens)
    return a_token * sum(len(each.tokens) for each in probes)


def verify(
    folder: Path,
    model: str | None = None,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Names of the goldens that are whole; BadGolden names the first that is not.

    Looks at hashes, at what is inside, at the model beside them, and for files nobody recorded.
    """
    entries = read_manifest(folder)["goldens"]
    name = model and model_name(find_model(model))
    chosen = [entry for entry in entries if name is None or entry["model"] == name]
    if name is not None and not chosen:
        raise BadGolden(f"no golden of model {name!r} in {folder}: harness golden record makes one")
    tasks: list[Task] = [{"folder": str(folder), "entry": entry} for entry in chosen]
    found = list(sweep(verified, tasks, executor=executor, progress=progress))
    found.sort(key=lambda pair: tasks.index(pair[0]))  # they come as they are done
    fine = [task["entry"]["file"] for task, problem in found if problem is None]
    problems = [problem for _, problem in found if problem is not None]
    known = {entry["file"] for entry in entries}
    for path in sorted((folder / "traces").glob("*.safetensors")):
        if f"traces/{path.name}" not in known:
            problems.append(f"{path} is not in {folder / MANIFEST}: record it, or remove it")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadGolden(problems[0] + more)
    return fine


def verified(task: Task) -> str | None:
    """What is wrong with a golden, an entry of its folder's manifest; None where it is whole."""
    folder, entry = Path(task["folder"]), task["entry"]
    try:
        path = folder / contained(entry["file"], folder)
        check_hash(path, entry)
        Content(path, entry["dtype"])
        source = folder / "models" / entry["model"]
        if source.exists():
            model_files = find_model(source)
            check_model(model_files, identity(model_files), entry, path)
    except EngineError as error:
        return str(error)
    return None


def _write(
    folder: Path,
    files: ModelFiles,
    reference: str,
    dtype: str,
    arrays: Mapping[str, np.ndarray],
    metadata: dict[str, str],
    command: str | None,
) -> Path:
    name = model_name(files)
    file = f"traces/{name}.{reference.replace(':', '-')}.{dtype}.safetensors"
    data = as_bytes(arrays, SCHEMA, **metadata)
    entry = {
        "file": file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "model": name,
        "reference": reference,
        "dtype": dtype,
        **identity(files),
        **{
            key: environment.describe()[key] for key in ("python", "platform", "device", "packages")
        },
        "command": command or shlex.join(["harness", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    part = part_of(folder, entry)
    with alone(folder, wait=True):
        try:
            write_whole(part, data)
            install(part, folder, entry)
        finally:
            part.unlink(missing_ok=True)
    return folder / file
