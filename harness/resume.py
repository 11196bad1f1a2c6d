"""The state of a stream between two parts, as one file: to go on where it was interrupted.

Safetensors with the arrays, and JSON in its metadata. A file that belongs to another comparison is
refused, by a digest of everything that moves a number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engine.whole import write_whole

from . import environment
from .comparison import Measure
from .errors import BadOption
from .memory import check_disk
from .streaming import MODES, Course, Stream
from .traces import Tensors, as_bytes
from .types import Site

SCHEMA = "harness.stream/1"


class Resume:
    """One file; `fingerprint` is JSON-able and says what comparison it is of."""

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = path
        known = {**fingerprint, "packages": environment.describe()["packages"]}
        self._digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def load(self, stream: Stream) -> int:
        """Put what the file holds into a fresh stream; return how many parts are done."""
        if not self.path.exists():
            return 0
        tensors = Tensors(self.path, BadOption)
        metadata = tensors.metadata
        if metadata.get("schema") != SCHEMA or metadata.get("of") != self._digest:
            raise BadOption(
                f"--resume {self.path} is of another comparison, or of other versions: remove it, "
                "or name another file"
            )
        try:
            state = json.loads(metadata["state"])
            for index, course in enumerate(stream.courses):
                _restore(stream, index, course, state["courses"][index], tensors)
            return int(state["done"])
        except (KeyError, ValueError, TypeError, IndexError, RecursionError) as cause:
            raise tensors.wrong(f"{type(cause).__name__}: {cause}") from None

    def save(self, stream: Stream, done: int) -> None:
        """Write the state after `done` parts, whole or not at all."""
        arrays: dict[str, np.ndarray] = {}
        courses = [_state(stream, i, course, arrays) for i, course in enumerate(stream.courses)]
        state = json.dumps({"done": done, "courses": courses})
        data = as_bytes(arrays, SCHEMA, of=self._digest, state=state)
        check_disk(self.path, len(data))
        write_whole(self.path, data)


def _state(
    stream: Stream, index: int, course: Course, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """JSON of one probe; its arrays are added to `arrays`."""
    evidence, live = course.evidence, stream.live
    for side, value in course.values.items():
        arrays[f"{index}/values/{side}"] = value
    for site, value in evidence.feed.items() if live else ():
        arrays[f"{index}/feed/{_key(site)}"] = value
    for mode, sites in evidence.expected.items() if live else ():
        for site, value in sites.items():
            arrays[f"{index}/expected/{mode}/{_key(site)}"] = value
    for who, by_mode in stream.all_ties(index).items():
        for mode, ties in by_mode.items():
            for block, tied in ties.state.items():
                arrays[f"{index}/ties/{who}/{mode}/{block}"] = tied.astype(np.uint8)
    return {
        "scales": course.scales,
        "widths": [[_key(site), width] for site, width in evidence.widths.items()],
        "noise": {m: [[_key(s), n] for s, n in evidence.noise[m].items()] for m in MODES},
        "measures": [
            {**asdict(m), "site": _key(m.site), "probe": None, "error": _finite(m.error)}
            for m in course.measures
        ],
    }


def _restore(
    stream: Stream, index: int, course: Course, state: Mapping[str, Any], tensors: Tensors
) -> None:
    evidence, ties = course.evidence, stream.all_ties(index)
    course.scales += state["scales"]
    if stream.live:
        evidence.widths = {_site(key): width for key, width in state["widths"]}
        for mode in MODES:
            evidence.noise[mode] |= {_site(key): noise for key, noise in state["noise"][mode]}
    for m in state["measures"]:
        error = math.inf if m["error"] is None else m["error"]
        known = {**m, "site": _site(m["site"]), "probe": course.probe, "error": error}
        known["each"] = tuple(m["each"])
        course.measures.append(Measure(**known))
    for name in (name for name in tensors.names if name.startswith(f"{index}/")):
        _, what, *rest = name.split("/")
        value = tensors.read(name, finite=False)
        if what == "values":
            course.values[rest[0]] = value
        elif what == "feed":
            evidence.feed[_site(rest[0])] = value
        elif what == "expected":
            evidence.expected[rest[0]][_site(rest[1])] = value
        elif what == "ties":
            ties[rest[0]][rest[1]].state[int(rest[2])] = value.astype(bool)


def _key(site: Site) -> str:
    return f"{site.kind}|{'' if site.block is None else site.block}|{site.part}|{site.path}"


def _site(key: str) -> Site:
    kind, block, part, path = key.split("|")
    return Site(kind, int(block) if block else None, part, path)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
