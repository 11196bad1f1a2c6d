"""`harness trace`: what a backend computes as a trace file, and the probes other programs run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from engine.files import find_model
from engine.generate import check_prompt
from engine.whole import write_whole

from .backends import Request, load_backend
from .environment import device_class, version
from .errors import BadOption
from .reference import LiveReference, Oracle, with_scales
from .sides import default_reference, load_reference
from .traces import INPUT, MODES, PROBES, SCHEMA, TAKEN, Trace, as_bytes, described, name_of
from .types import ISOLATED, Evidence, Probe

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
Progress = Callable[[int, "int | None", str], None]


def write_trace(
    model: str,
    backend: str,
    out: Path,
    dtype: str = "float32",
    *,
    on: Path | None = None,
    device: str | None = None,
    revision: str | None = None,
    inside: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Run a backend on probes and write what it shows; return the path.

    The probes are those of the file `on`, or the ones a comparison would begin with. `inside` is a
    block whose modules are written as well, as they compute from the block's seeded input.
    """
    _check(out)
    probes = Trace(on, PROBES).probes if on else None
    request = Request(find_model(model, revision), dtype, device)
    side = load_backend(backend, request)
    own = Oracle(side, dtype, keep=True)
    arrays: dict[str, np.ndarray] = {}
    source = LiveReference(request.files, side, None, prompts=1)
    todo = probes or source.probes
    for probe in todo:
        check_prompt(probe.tokens, source.rows)
    for done, probe in enumerate(todo):
        if progress:
            progress(done, len(todo), probe.name)
        if probe.scales is None:
            probe = with_scales(probe, own.expected(probe))
        evidence = own.expected(probe)
        if inside is not None:
            evidence = own.inside(probe, inside, {}, evidence)
        arrays |= described(probe)
        for mode in MODES:
            for site, array in evidence.expected[mode].items():
                whole = site.kind == "experts"
                kept = array.astype(np.int32 if whole else DTYPES[dtype])
                arrays[f"{probe.name}/{mode}/{name_of(site)}"] = kept
        if probe.prompt is not None:
            given, more = probe.tokens[: probe.prompt], len(probe.tokens) - probe.prompt
            taken = side.greedy(given, more) if more else []
            arrays[f"{probe.name}/{TAKEN}"] = np.array(taken, np.int32)
    made_by = f"mlx-parity, {side.name}, mlx {version('mlx')}"
    device_name = device_class(side.device)
    write_whole(out, as_bytes(arrays, SCHEMA, dtype=dtype, producer=made_by, device=device_name))
    return out


def write_probes(
    model: str,
    out: Path,
    reference: str | None = None,
    dtype: str = "float32",
    *,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the probes of a reference, with the inputs of every block; return the path."""
    _check(out)
    files = find_model(model, revision)
    source = load_reference(reference or default_reference(), Request(files, dtype), prompts=1)
    arrays: dict[str, np.ndarray] = {}
    for done, probe in enumerate(source.probes):
        if progress:
            progress(done, len(source.probes), probe.name)
        evidence = source.evidence(probe)
        if probe.scales is None:
            probe = with_scales(probe, evidence)
        arrays |= described(probe) | _inputs(probe, evidence)
    write_whole(out, as_bytes(arrays, PROBES, model=files.name, reference=source.name))
    return out


def _inputs(probe: Probe, evidence: Evidence) -> dict[str, np.ndarray]:
    """What enters every block, and the last norm, by the name of what it enters."""
    from .reference import seeded_feed

    assert probe.scales is not None
    shapes = {site: np.broadcast_to(0.0, evidence.shape(site)) for site in evidence.feed}
    fed = list(seeded_feed(shapes, probe.scales).values())
    blocks = [s for s in evidence.expected[ISOLATED] if s.kind == "block"]
    names = [*map(name_of, blocks), "norm"]
    return {f"{probe.name}/{INPUT}/{n}": a for n, a in zip(names, fed, strict=True)}


def _check(out: Path) -> None:
    if not out.parent.is_dir():
        raise BadOption(f"--out {out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise BadOption(f"--out {out} is a folder: name a file in it")
