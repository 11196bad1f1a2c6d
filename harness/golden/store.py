"""Goldens on disk: what a reference and the oracle computed, with where it came from.

One safetensors file per model, reference and dtype, in `traces/`; `MANIFEST.json` beside it says
what each belongs to and what its sha256 is. Nothing is read from a file before its hash is right,
and nothing is ever half written.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import EngineError
from engine.files import ModelFiles, find_model, golden_roots
from engine.weights import read_weights

from .. import environment
from ..backends import Request
from ..errors import BadGolden
from ..probes import TEXTS
from ..reference import Oracle, rounded
from ..types import ISOLATED, PROPAGATED, Evidence, Probe, Site, TokenFacts

SCHEMA = "harness.golden/1"
MANIFEST_SCHEMA = "harness.manifest/1"
KEY = "golden"  # of the JSON in the safetensors metadata
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


class GoldenReference:
    """A recorded reference, at the dtype it was recorded at.

    `argument` names whose recording ("torch" by default). Raises BadGolden when there is none for
    exactly these weights, or when it is not whole.
    """

    def __init__(self, files: ModelFiles, dtype: str, argument: str = "") -> None:
        self.dtype, self._files = dtype, files
        self.entry, path = _find(files, dtype, argument or "torch")
        self.name = f"golden:{self.entry['reference']}"
        _check_hash(path, self.entry)
        self._arrays, self._record = _read(path)
        self._sites = [Site(**site) for site in self._record["sites"]]

    @property
    def probes(self) -> list[Probe]:
        return self._probes

    @cached_property
    def _probes(self) -> list[Probe]:
        return [
            Probe(p["name"], p["kind"], p["reason"], tuple(p["tokens"]), p["prompt"])
            for p in self._record["probes"]
        ]

    def expected(self, probe: Probe, inside: int | None = None) -> Evidence | None:
        """The oracle's arrays, with the noise of the recorded reference."""
        names = [p["name"] for p in self._record["probes"]]
        if probe.name not in names or inside is not None:
            return None
        index = names.index(probe.name)
        record = self._record["probes"][index]
        expected = {
            mode: {site: self._arrays[f"{index}.{mode}.{k}"] for k, site in enumerate(self._sites)}
            for mode in (PROPAGATED, ISOLATED)
        }
        noise = {
            mode: dict(zip(self._sites, record["noise"][mode], strict=True)) for mode in expected
        }
        inputs = [
            rounded(array, self.dtype)
            for site, array in expected[PROPAGATED].items()
            if site.kind in ("embedding", "block")
        ]
        return Evidence(expected, noise, inputs, self._arrays[f"{index}.spread"])

    def evidence(self, probe: Probe) -> Evidence:
        found = self.expected(probe)
        if found is None:
            raise BadGolden(f"probe {probe.name!r} is not in the golden {self.entry['file']}")
        return found

    def inside(self, probe: Probe, block: int) -> Evidence | None:
        return None

    def weights(self) -> Mapping[str, Any]:
        """The model's own tensors: `_find` has seen that they are the recorded ones."""
        return read_weights(self._files)

    def tokens(self) -> TokenFacts | None:
        facts = self._record["tokens"]
        if facts is None:
            return None
        ids = {TEXTS[label]: tuple(found) for label, found in facts["ids"].items()}
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
    live: Any = load_reference(reference, Request(files, dtype))
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
        arrays[f"{index}.spread"] = evidence.spread
        noise = {m: [evidence.noise[m][s] for s in sites] for m in (PROPAGATED, ISOLATED)}
        probes.append({**vars(probe), "tokens": list(probe.tokens), "noise": noise})
    facts = live.tokens()
    content = {
        "schema": SCHEMA,
        "sites": [vars(site) for site in sites],
        "probes": probes,
        "tokens": facts
        and {
            **vars(facts),
            "ids": {label: list(facts.ids[text]) for label, text in TEXTS.items()},
        },
    }
    return _write(folder, _name(files), files, reference, dtype, content, arrays)


def verify(folder: Path, model: str | None = None) -> list[str]:
    """Names of the goldens that are whole; BadGolden names the first that is not.

    Looks at hashes, at what is inside, at the model beside them, and for files nobody recorded.
    """
    entries = _manifest(folder)["goldens"]
    name = model and _name(find_model(model))
    chosen = [entry for entry in entries if name is None or entry["model"] == name]
    if name is not None and not chosen:
        raise BadGolden(f"no golden of model {name!r} in {folder}: harness golden record makes one")
    problems, fine = [], []
    for entry in chosen:
        try:
            path = folder / _plain(entry["file"], folder)
            _check_hash(path, entry)
            _read(path)
            source = folder / "models" / entry["model"]
            if source.exists():
                _check_model(find_model(source), entry, path)
            fine.append(entry["file"])
        except EngineError as error:
            problems.append(str(error))
    known = {entry["file"] for entry in entries}
    for path in sorted((folder / "traces").glob("*.safetensors")):
        if f"traces/{path.name}" not in known:
            problems.append(f"{path} is not in {folder / 'MANIFEST.json'}: record it, or remove it")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise BadGolden(problems[0] + more)
    return fine


def weights_digest(tensors: Mapping[str, Any]) -> str:
    """sha256 of names, dtypes, shapes and values: the same in either file format."""
    import mlx.core as mx

    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        raw = mx.contiguous(array).reshape(-1)
        digest.update(np.array(raw.view(mx.uint8)).tobytes())
    return digest.hexdigest()


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
    manifest = _manifest(folder) if (folder / "MANIFEST.json").exists() else _empty()
    entry = {
        "file": f"traces/{path.name}",
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "model": name,
        "reference": reference,
        "dtype": dtype,
        "weights": weights_digest(read_weights(files)),
        "config": _digest(json.dumps(dict(files.config), sort_keys=True).encode()),
        "tokenizer": _tokenizer_digest(files),
        **{
            key: environment.describe()[key] for key in ("python", "platform", "device", "packages")
        },
        "command": shlex.join(["harness", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
    }
    others = [e for e in manifest["goldens"] if e["file"] != entry["file"]]
    manifest["goldens"] = sorted([*others, entry], key=lambda e: e["file"])
    _replace(path, data)
    _replace(folder / "MANIFEST.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return path


def _replace(path: Path, data: bytes) -> None:
    """Write beside the file, then move over it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _find(files: ModelFiles, dtype: str, reference: str) -> tuple[dict[str, Any], Path]:
    """The entry recorded from exactly these weights, and its file."""
    digest, near = None, []
    for folder in _folders(files):
        for entry in _manifest(folder)["goldens"]:
            digest = digest or weights_digest(read_weights(files))
            if entry["weights"] != digest:
                continue
            if (entry["dtype"], entry["reference"]) == (dtype, reference):
                path = folder / _plain(entry["file"], folder)
                _check_model(files, entry, path)
                return entry, path
            near.append(f"{entry['reference']} at {entry['dtype']}")
    command = f"harness golden record --model {files.name} --reference {reference} --dtype {dtype}"
    found = f" (there is {', '.join(near)})" if near else ""
    raise BadGolden(
        f"no golden of {files.name} from {reference} at {dtype}{found}: make one with `{command}`"
    )


def _folders(files: ModelFiles) -> Iterator[Path]:
    """Golden folders: the one the model lies in, then those models are looked up in."""
    candidates = [files.folder.parent.parent, *(root.parent for root in golden_roots())]
    seen = set()
    for folder in candidates:
        if folder.resolve() not in seen and (folder / "MANIFEST.json").exists():
            seen.add(folder.resolve())
            yield folder


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "MANIFEST.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] != MANIFEST_SCHEMA:
            raise ValueError(f"schema {manifest['schema']!r}, not {MANIFEST_SCHEMA!r}")
        for entry in manifest["goldens"]:
            if missing := {"file", "sha256", "model", "weights", "dtype", "reference"} - set(entry):
                raise ValueError(f"an entry without {sorted(missing)[0]!r}")
        return manifest
    except FileNotFoundError:
        raise BadGolden(f"{path} does not exist: harness golden record makes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadGolden(f"{path} is not a manifest of goldens: {error}") from None


def _check_hash(path: Path, entry: Mapping[str, Any]) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadGolden(f"golden {path} cannot be read: {error.strerror}") from None
    if found != entry["sha256"]:
        raise BadGolden(
            f"golden {path} has sha256 {found[:12]}..., the manifest says "
            f"{entry['sha256'][:12]}...: it was altered or cut short; record it again"
        )


def _check_model(files: ModelFiles, entry: Mapping[str, Any], path: Path) -> None:
    """The golden must be of these weights, this config and this tokenizer."""
    if weights_digest(read_weights(files)) != entry["weights"]:
        what = "weights"
    elif _digest(json.dumps(dict(files.config), sort_keys=True).encode()) != entry.get("config"):
        what = "config.json"
    elif _tokenizer_digest(files) != entry.get("tokenizer"):
        what = "tokenizer"
    else:
        return
    raise BadGolden(
        f"golden {path} was recorded from another {what} than {files.folder} has: record it again"
    )


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


def _plain(file: str, folder: Path) -> str:
    """A file name of the manifest, which must stay inside its folder."""
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise BadGolden(f"{folder / 'MANIFEST.json'} names {file!r}, outside its folder")
    return file


def _tokenizer_digest(files: ModelFiles) -> str:
    parts = [files.folder / name for name in TOKENIZER_FILES]
    return _digest(b"".join(part.read_bytes() for part in parts if part.exists()))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _name(files: ModelFiles) -> str:
    """How goldens of a model are called: its folder's name."""
    return files.folder.resolve().name


def _empty() -> dict[str, Any]:
    return {"schema": MANIFEST_SCHEMA, "goldens": []}
