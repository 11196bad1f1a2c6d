"""Fuzz what is read from others: `python benchmarks/fuzz.py --seconds 600` (pip install atheris).

Traces, files of probes, goldens and manifests are mutated from small valid ones: bytes anywhere,
bytes of the header, or single values of the JSON in it, so that more than the first check is
reached. Anything but the one-line error of the reader is a finding, which atheris reports with the
bytes that made it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["harness"]):
    from harness.errors import BadGolden, BadTrace
    from harness.golden import format as golden_format
    from harness.golden import manifest, remote
    from harness.traces import PROBES, SCHEMA, Trace, as_bytes

import numpy as np

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def trace(path: Path) -> None:
    found = Trace(path, SCHEMA)
    found.complete(2)
    for probe in found.probes:
        for mode in ("propagated", "isolated"):
            list(found.sites(probe, mode))
        found.taken(probe)


def probes(path: Path) -> None:
    Trace(path, PROBES)


def golden(path: Path) -> None:
    content = golden_format.Content(path, "float32")
    for probe in content.probes:
        content.evidence(probe)


def manifests(path: Path) -> None:
    path.replace(FOLDER / manifest.NAME)
    for entry in manifest.read_manifest(FOLDER)["goldens"]:
        manifest.contained(entry["file"], FOLDER)
    remote._checked(manifest.read_manifest(FOLDER)["goldens"], "a far end")


READERS = (trace, probes, golden, manifests)


def seeds() -> list[bytes]:
    """A small valid file for each reader."""
    from harness.golden.format import pack, sketched
    from harness.metrics import relative_error
    from harness.sketch import Sketch
    from harness.types import ISOLATED, LOGITS, PROPAGATED, Evidence, Probe, Site, TokenFacts

    chance = np.random.default_rng(0)
    sites = [Site("embedding", None, "", "e"), Site("block", 0, "", "l.0")]
    sites += [Site("block", 1, "", "l.1"), Site("norm", None, "", "n"), LOGITS]
    arrays = {site: chance.standard_normal((3, 24)) for site in sites}
    noise = dict.fromkeys(sites, relative_error(arrays[LOGITS] + 1e-7, arrays[LOGITS]))
    probe = Probe("text", "text", "why", (1, 2, 3), 2, (0, 0, 0))
    evidence = Evidence(
        {PROPAGATED: arrays, ISOLATED: arrays}, {}, {PROPAGATED: noise, ISOLATED: noise},
        arrays[LOGITS].astype(np.float32),
    )  # fmt: skip
    small = sketched(evidence, probe, Sketch(4), "float32")
    packed, metadata = pack([(probe, small)], TokenFacts({"a": (1,)}, 0, (1,), 9, 24), 1.0)
    text = {"text/tokens": np.array([1, 2, 3]), "text/scales": np.zeros(3, int)}
    text["text/prompt"] = np.array([2])
    ran = {f"text/{mode}/{name}": np.ones((3, 24), np.float32)
           for mode in ("propagated", "isolated")
           for name in ("embedding", "l.0", "l.1", "norm", "logits")}  # fmt: skip
    inputs = {f"text/input/{name}": np.ones((3, 24), np.float32) for name in ("l.0", "l.1", "norm")}
    entry = {"file": "traces/a.safetensors", "sha256": "0" * 64, "bytes": 9, "model": "a"}
    entry |= {"weights": "w", "dtype": "float32", "reference": "torch"}
    return [
        as_bytes({**text, **ran, "text/taken": np.array([5])}, SCHEMA, dtype="float32"),
        as_bytes({**text, **inputs}, PROBES),
        as_bytes(packed, golden_format.SCHEMA, **metadata),
        json.dumps({"schema": manifest.SCHEMA, "goldens": [entry]}).encode(),
    ]


def once(data: bytes) -> None:
    if not data:
        return
    path = FOLDER / "input.safetensors"
    path.write_bytes(data[1:])
    with contextlib.suppress(BadTrace, BadGolden):
        READERS[data[0] % len(READERS)](path)


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """One of three changes; a header's length is put right."""
    kind, body, chance = data[:1], data[1:], random.Random(seed)
    way = chance.random()
    if len(data) > 1 and data[0] % len(READERS) == READERS.index(manifests) and way < 0.6:
        return (kind + _other_json(body, chance))[:most]
    length = int.from_bytes(body[:8], "little")
    if way < 0.3 or not 0 < length <= len(body) - 8:
        return (kind + atheris.Mutate(body, most - 1))[:most]
    header = body[8 : 8 + length]
    header = atheris.Mutate(header, 4096) if way < 0.5 else _other_json(header, chance)
    return (kind + len(header).to_bytes(8, "little") + header + body[8 + length :])[:most]


ODD = (None, True, -1, 0, 1, 3, 1 << 70, 1e308, float("nan"), "", "..", "a/b", "x" * 300, [], {})


def _other_json(data: bytes, chance: random.Random) -> bytes:
    """JSON with one value another, JSON inside strings included."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return json.dumps(_odd(value, chance)).encode()


def _odd(value: Any, chance: random.Random) -> Any:
    if isinstance(value, str) and value[:1] in "{[" and chance.random() < 0.9:
        with contextlib.suppress(ValueError):
            return json.dumps(_odd(json.loads(value), chance))
    if isinstance(value, (dict, list)) and value and chance.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, found = chance.choice(keys), value.copy()
        if chance.random() < 0.1:
            del found[key]
        else:
            found[key] = _odd(value[key], chance)
        return found
    return chance.choice(ODD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds()):
        (corpus / str(number)).write_bytes(bytes([number]) + data)
    arguments = [sys.argv[0], str(corpus), f"-max_total_time={options.seconds}"]
    arguments += ["-max_len=8192", "-rss_limit_mb=4096", "-timeout=20", "-print_final_stats=1"]
    atheris.Setup(arguments, once, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
