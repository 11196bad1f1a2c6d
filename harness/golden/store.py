"""Goldens on disk: what a reference and the oracle computed, with where it came from.

One safetensors file per model, reference and dtype, in `traces/`; `manifest.py` knows what each
belongs to. Nothing is read from a file before its hash is right.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.files import ModelFiles, find_model
from engine.weights import read_weights

from .. import environment
from ..backends import Request
from ..errors import BadGolden
from ..files import write_whole
from ..metrics import margins
from ..reference import Oracle, Shapes, rounded
from ..types import ISOLATED, LOGITS, PROPAGATED, Evidence, Probe, Site, TokenFacts
from .manifest import NAME as MANIFEST
from .manifest import (
    add_entry,
    check_hash,
    check_model,
    contained,
    find_golden,
    identity,
    model_name,
    read_manifest,
)

SCHEMA = "harness.golden/1"
KEY = "golden"  # of the JSON in the safetensors metadata


class GoldenReference:
    """A recorded reference, at the dtype it was recorded at.

    `argument` names whose recording ("torch" by default). Raises BadGolden when there is none for
    exactly these weights, or when it is not whole.
    """

    def __init__(self, files: ModelFiles, dtype: str, argument: str = "") -> None:
        self.dtype, self._files = dtype, files
        self.entry, path = find_golden(files, dtype, argument or "torch")
        self.name = f"golden:{self.entry['reference']}"
        check_hash(path, self.entry)
        self._arrays, self._record = _read(path)
        self._sites = [Site(**site) for site in self._record["sites"]]
        self._probes = {
            Probe(p["name"], p["kind"], p["reason"], tuple(p["tokens"]), p["prompt"]): (
                i,
                p["noise"],
                p.get("tied"),
            )
            for i, p in enumerate(self._record["probes"])
        }

    @property
    def probes(self) -> list[Probe]:
        return list(self._probes)

    def evidence(self, probe: Probe) -> Evidence:
        """The oracle's arrays, with the noise of the recorded reference."""
        if probe not in self._probes:
            raise BadGolden(f"probe {probe.name!r} is not in the golden {self.entry['file']}")
        index, noise, tied = self._probes[probe]
        expected = {
            mode: {site: self._arrays[f"{index}.{mode}.{k}"] for k, site in enumerate(self._sites)}
            for mode in noise
        }
        feed = {
            site: rounded(array, self.dtype)
            for site, array in expected[PROPAGATED].items()
            if site.kind in ("embedding", "block")
        }
        by_site = {
            m: {s: n for s, n in zip(self._sites, noise[m], strict=True) if n is not None}
            for m in noise
        }
        twin = self._arrays[f"{index}.reference.{self._sites.index(LOGITS)}"]
        rows = None if tied is None else np.array(tied, bool)
        return Evidence(expected, feed, by_site, twin, rows)

    def more(self, kind: str, i: int) -> None:
        return None

    def inside(self, probe: Probe, block: int, shapes: Shapes) -> Evidence | None:
        return None

    def weights(self) -> Mapping[str, Any]:
        """The model's own tensors: `_find` has seen that they are the recorded ones."""
        return read_weights(self._files)

    def tokens(self) -> TokenFacts | None:
        facts = self._record["tokens"]
        if facts is None:
            return None
        ids = {text: tuple(found) for text, found in facts["ids"].items()}
        return TokenFacts(
            ids, facts["bos_id"], tuple(facts["eos_ids"]), facts["max_id"], facts["rows"]
        )


def record(
    model: str,
    reference: str,
    dtype: str,
    folder: Path,
    *,
    revision: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Run a live reference on every probe and write the golden; return its path.

    An interrupted recording leaves the old golden as it was.
    """
    from ..judge import load_reference

    files = find_model(model, revision)
    live: Any = load_reference(reference, Request(files, dtype), prompts=1)
    if reference == "golden" or not isinstance(getattr(live, "_truth", None), Oracle):
        raise BadGolden(
            f"reference {reference!r} has no oracle to record: PyTorch must be installed"
        )
    arrays: dict[str, np.ndarray] = {}
    sites: list[Site] = []
    probes: list[dict[str, Any]] = []
    for index, probe in enumerate(live.probes):
        if progress:
            progress(index, len(live.probes), probe.name)
        evidence = live.evidence(probe)
        sites = list(evidence.expected[PROPAGATED])
        own: dict[Site, np.ndarray] = {}
        live._twin.forward(probe.tokens, own.__setitem__)
        for k, site in enumerate(sites):
            for mode in (PROPAGATED, ISOLATED):
                arrays[f"{index}.{mode}.{k}"] = np.ascontiguousarray(evidence.expected[mode][site])
            arrays[f"{index}.reference.{k}"] = np.ascontiguousarray(own[site], dtype=np.float32)
        noise = {m: [evidence.noise[m].get(s) for s in sites] for m in (PROPAGATED, ISOLATED)}
        entry = {**vars(probe), "tokens": list(probe.tokens), "noise": noise}
        if evidence.tied is not None:
            entry["tied"] = evidence.tied.tolist()
        if probe.prompt is not None:  # how far each greedy token was ahead of the next best
            chosen = slice(probe.prompt - 1, len(probe.tokens) - 1)
            entry["margins"] = margins(evidence.logits)[chosen].tolist()
        probes.append(entry)
    facts = live.tokens()
    content = {
        "schema": SCHEMA,
        "sites": [vars(site) for site in sites],
        "probes": probes,
        "tokens": facts
        and {
            **vars(facts),
            "ids": {text: list(found) for text, found in facts.ids.items()},
        },
    }
    return _write(folder, model_name(files), files, reference, dtype, content, arrays)


def verify(folder: Path, model: str | None = None) -> list[str]:
    """Names of the goldens that are whole; BadGolden names the first that is not.

    Looks at hashes, at what is inside, at the model beside them, and for files nobody recorded.
    """
    entries = read_manifest(folder)["goldens"]
    name = model and model_name(find_model(model))
    chosen = [entry for entry in entries if name is None or entry["model"] == name]
    if name is not None and not chosen:
        raise BadGolden(f"no golden of model {name!r} in {folder}: harness golden record makes one")
    problems, fine = [], []
    for entry in chosen:
        try:
            path = folder / contained(entry["file"], folder)
            check_hash(path, entry)
            _read(path)
            source = folder / "models" / entry["model"]
            if source.exists():
                model_files = find_model(source)
                check_model(model_files, identity(model_files), entry, path)
            fine.append(entry["file"])
        except EngineError as error:
            problems.append(str(error))
    known = {entry["file"] for entry in entries}
    for path in sorted((folder / "traces").glob("*.safetensors")):
        if f"traces/{path.name}" not in known:
            problems.append(f"{path} is not in {folder / MANIFEST}: record it, or remove it")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadGolden(problems[0] + more)
    return fine


def _write(
    folder: Path,
    name: str,
    files: ModelFiles,
    reference: str,
    dtype: str,
    content: dict[str, Any],
    arrays: dict[str, np.ndarray],
) -> Path:
    from safetensors.numpy import save

    path = folder / "traces" / f"{name}.{reference}.{dtype}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, allow_nan=False)
    data = save(arrays, metadata={KEY: text})
    entry = {
        "file": f"traces/{path.name}",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "model": name,
        "reference": reference,
        "dtype": dtype,
        **identity(files),
        **{
            key: environment.describe()[key] for key in ("python", "platform", "device", "packages")
        },
        "command": shlex.join(["harness", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    write_whole(path, data)
    add_entry(folder, entry)
    return path


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            content = json.loads((file.metadata() or {})[KEY])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}, not {SCHEMA!r}")
        for index in range(len(content["probes"])):
            for k in range(len(content["sites"])):
                for part in (PROPAGATED, ISOLATED, "reference"):
                    if not np.isfinite(arrays[f"{index}.{part}.{k}"]).all():
                        raise ValueError(f"{index}.{part}.{k} is not finite")
        return arrays, content
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadGolden(f"golden {path} cannot be read: {error}") from None
