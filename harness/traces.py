"""Trace files: what one program computed on some probes, in safetensors. docs/TRACE_FORMAT.md.

    PROBE/tokens             (T,) whole numbers
    PROBE/propagated/SITE    (T, features)
    PROBE/isolated/SITE      (T, features), each block on its seeded input (`seeded.py`)
    PROBE/scales             (blocks + 1,) exponents of those inputs
    PROBE/prompt             (1,) how many of the tokens were given; the rest is a continuation
    PROBE/taken              (n,) greedy tokens after the prompt

A file of probes has tokens, scales, prompt, and the inputs as PROBE/input/SITE. Nothing of a file
is believed before it is checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  so that numpy knows bfloat16
import numpy as np

from engine.errors import one_line

from .backends._streamed import within
from .errors import BadTrace
from .metrics import FLOOR
from .seeded import EXPONENTS
from .types import ISOLATED, LOGITS, PROPAGATED, Probe, Site

SCHEMA, PROBES = "harness.trace/1", "harness.probes/1"
TOKENS, SCALES, PROMPT, TAKEN, INPUT = "tokens", "scales", "prompt", "taken", "input"
MODES = (PROPAGATED, ISOLATED)
PLAIN = ("embedding", "norm", "logits")  # sites that are in no block
ROUTING = ("router", "groups", "experts")
LONGEST = 1 << 20  # tokens of a probe


def name_of(site: Site) -> str:
    """What a site is called in a file: its path, or its kind where it is in no block."""
    if site.kind in PLAIN:
        return site.kind
    return f"layers.{site.block}:{site.kind}" if site.kind in ROUTING else site.path


def site_named(name: str) -> Site | None:
    """The site of a name; None for one that is none.

    The first number among the parts of a path is its block, whatever stands before it.
    """
    if name in PLAIN:
        return LOGITS if name == LOGITS.kind else Site(name, None, "", name)
    path, _, kind = name.partition(":")
    steps = path.split(".")
    at = next((i for i, step in enumerate(steps) if re.fullmatch(r"[0-9]{1,6}", step)), None)
    if at is None or (kind and (kind not in ROUTING or at + 1 < len(steps))):
        return None
    block, part = int(steps[at]), ".".join(steps[at + 1 :])
    return Site(kind or ("module" if part else "block"), block, part, path)


class Tensors:
    """The tensors of a safetensors file, read one by one when they are asked for.

    Raises `error` with the file's name for anything that is wrong with it.
    """

    def __init__(self, path: Path, error: type[Exception] = BadTrace) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, self._error = path, error
        self._refused = (OSError, SafetensorError, ValueError, KeyError, TypeError, OverflowError)
        try:
            with path.open("rb"):  # a folder, or a file that is not there, in Python's own words
                pass
            self._file: Any = safe_open(path, framework="numpy").__enter__()
            self.names: list[str] = list(self._file.keys())
            self.metadata: Mapping[str, str] = self._file.metadata() or {}
        except self._refused as cause:
            raise self.wrong(_reason(cause)) from None

    def wrong(self, what: str) -> Exception:
        return self._error(f"{self.path} cannot be used: {what}")

    def read(self, name: str, finite: bool = True) -> np.ndarray:
        """One tensor; float32 in place of narrower floats. With `finite`, nothing else passes."""
        try:
            array = self._file.get_tensor(name)
        except self._refused as cause:
            raise self.wrong(f"{name!r}: {_reason(cause)}") from None
        if array.dtype.kind not in "iuf" and str(array.dtype) != "bfloat16":
            raise self.wrong(f"{name!r} is {array.dtype}, not numbers")
        if array.dtype.kind not in "iu" and array.dtype not in (np.float32, np.float64):
            array = array.astype(np.float32)
        if finite and not np.isfinite(array).all():
            at = int(np.flatnonzero(~np.isfinite(array).reshape(-1, array.shape[-1]).all(1))[0])
            raise self.wrong(f"{name!r} holds NaN or infinity, first in row {at}")
        return array

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())


class Trace:
    """A trace, or a file of probes, all of it checked. Raises BadTrace."""

    def __init__(self, path: Path, schema: str = SCHEMA) -> None:
        self._tensors = Tensors(path)
        self.path, metadata = path, self._tensors.metadata
        if (found := metadata.get("schema")) != schema:
            raise self._wrong(f"its metadata says schema {found!r}, not {schema!r}")
        self.dtype = metadata.get("dtype", "")
        if schema == SCHEMA and self.dtype not in FLOOR:
            known = ", ".join(FLOOR)
            raise self._wrong(f"its metadata says dtype {self.dtype!r}, which is none of {known}")
        self.producer = metadata.get("producer", "another program")
        self.device = metadata.get("device", "host")
        if not re.fullmatch(r"host|cpu|[a-z0-9]+(-[a-z0-9_]+)+", self.device):
            raise self._wrong(f"its metadata says device {self.device!r}: metal-apple-m4, or so")
        self._keys: dict[str, dict[str, dict[Site, str]]] = {}  # probe -> mode -> site -> key
        self._small: dict[str, dict[str, np.ndarray]] = {}
        for key in sorted(self._tensors.names):
            self._sort(key)
        self.probes = [self._probe(name) for name in sorted({*self._small, *self._keys})]
        if not self.probes:
            raise self._wrong("it holds no probe")
        for probe in self.probes:
            self._check(probe)

    def sites(
        self, probe: Probe, mode: str, part: Site | None = None
    ) -> Iterator[tuple[Site, np.ndarray]]:
        """Every site of a probe in one mode, in execution order, with its array (T, features).

        With `part` only those it computes.
        """
        keys = self._keys.get(probe.name, {}).get(mode, {})
        for site in sorted(keys, key=_place):
            if part is None or within(site, part):
                yield site, self._rows(keys[site])

    @property
    def blocks(self) -> int:
        """How many blocks it shows."""
        modes = (found.get(PROPAGATED, {}) for found in self._keys.values())
        found = {site.block for sites in modes for site in sites if site.kind == "block"}
        return len(found)

    def has(self, mode: str, kind: str) -> bool:
        """Whether any probe has sites of a kind in a mode."""
        modes = (found.get(mode, {}) for found in self._keys.values())
        return any(site.kind == kind for sites in modes for site in sites)

    def taken(self, probe: Probe) -> list[int] | None:
        """The greedy tokens recorded after a probe's prompt."""
        found = self._small[probe.name].get(TAKEN)
        return None if found is None else [int(token) for token in found]

    def complete(self, blocks: int | None) -> None:
        """Raise BadTrace unless every probe has logits, and all blocks where it has any."""
        for probe in self.probes:
            for mode in MODES:
                sites = self._keys.get(probe.name, {}).get(mode, {})
                if mode == PROPAGATED and LOGITS not in sites:
                    raise self._wrong(f"{probe.name}/{mode}/logits is missing")
                found = {site.block for site in sites if site.kind == "block"}
                for block in range(blocks or 0) if found else ():
                    if block not in found:
                        raise self._wrong(f"{probe.name}/{mode} lacks block {block} of {blocks}")
                beyond = max((b for b in found if b is not None), default=-1)
                if blocks is not None and beyond >= blocks:
                    raise self._wrong(f"{probe.name}/{mode} has block {beyond} of {blocks}")

    @cached_property
    def width(self) -> int | None:
        """Columns of the logits."""
        keys = (found.get(PROPAGATED, {}).get(LOGITS) for found in self._keys.values())
        return next((self._shape(key)[-1] for key in keys if key), None)

    def _sort(self, key: str) -> None:
        """Put a key of the file where it belongs."""
        name, _, rest = key.partition("/")
        mode, _, site_name = rest.partition("/")
        if not name or not rest or not key.isprintable():
            raise self._wrong(f"{key!r} is not PROBE/tokens or PROBE/MODE/SITE")
        if rest in (TOKENS, SCALES, PROMPT, TAKEN):
            self._small.setdefault(name, {})[rest] = self._tensors.read(key)
            return
        site = site_named(site_name)
        if mode not in (*MODES, INPUT) or site is None:
            raise self._wrong(f"{key!r} names no site: modes are {', '.join(MODES)}")
        sites = self._keys.setdefault(name, {}).setdefault(mode, {})
        if site in sites:
            raise self._wrong(f"{sites[site]!r} and {key!r} are the same site")
        sites[site] = key

    def _shape(self, key: str) -> tuple[int, ...]:
        """A shape, without a leading axis of length one where there are three."""
        shape = self._tensors.shape(key)
        return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape

    def _rows(self, key: str) -> np.ndarray:
        """(T, features)"""
        return self._tensors.read(key).reshape(self._shape(key))

    def _probe(self, name: str) -> Probe:
        kind = re.sub(r" [0-9]+$", "", name)
        try:
            return read_probe(name, kind, f"as in {self.path.name}", self._small.get(name, {}))
        except ValueError as cause:
            raise self._wrong(str(cause)) from None

    def _check(self, probe: Probe) -> None:
        """Every array of a probe: its shape, and that all of it is finite."""
        modes = self._keys.get(probe.name, {})
        if ISOLATED in modes and probe.scales is None:
            raise self._wrong(f"{probe.name}/{ISOLATED} is there, {probe.name}/{SCALES} is not")
        for mode, sites in modes.items():
            for site in sorted(sites, key=_place):
                shape = self._shape(sites[site])
                if len(shape) != 2 or shape[0] != len(probe.tokens) or not shape[1]:
                    raise self._wrong(
                        f"{sites[site]!r} has shape {list(shape)}: "
                        f"({len(probe.tokens)}, features) is expected"
                    )
                self._rows(sites[site])
            if LOGITS in sites:
                columns = self._shape(sites[LOGITS])[1]
                if columns != self.width or max(probe.tokens) >= columns:
                    raise self._wrong(
                        f"{sites[LOGITS]!r} has {columns} columns, others {self.width}, and token "
                        f"{max(probe.tokens)} is among the tokens"
                    )
            if mode == ISOLATED and probe.scales is not None:
                blocks = {site.block for site in sites if site.kind == "block"}
                if blocks and len(probe.scales) != len(blocks) + 1:
                    raise self._wrong(
                        f"{probe.name}/{SCALES} has {len(probe.scales)} exponents for "
                        f"{len(blocks)} blocks and the last norm"
                    )

    def _wrong(self, what: str) -> Exception:
        return self._tensors.wrong(what)


def read_probe(name: str, kind: str, reason: str, small: Mapping[str, np.ndarray]) -> Probe:
    """A probe, by what stands under its name in a file. Raises ValueError for what is none."""
    if not (name + kind + reason).isprintable():
        raise ValueError(f"the name {name!r} cannot be printed")
    if TOKENS not in small:
        raise ValueError(f"{name}/{TOKENS} is missing")
    for what, array in small.items():
        if array.ndim != 1 or not 1 <= array.size <= LONGEST:
            raise ValueError(
                f"{name}/{what} has shape {list(array.shape)}: a list of 1 to {LONGEST} numbers"
            )
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name}/{what} is {array.dtype}, not whole numbers")
    tokens, scales = small[TOKENS], small.get(SCALES)
    if tokens.min() < 0 or tokens.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{name}/{TOKENS} holds {int(tokens.min())} to {int(tokens.max())}")
    if scales is not None and not all(int(e) in EXPONENTS for e in scales):
        raise ValueError(f"{name}/{SCALES} holds no exponents of float32")
    prompt = None if PROMPT not in small else int(small[PROMPT][0])
    if prompt is not None and not 0 < prompt < len(tokens):
        raise ValueError(f"{name}/{PROMPT} is {prompt}, and there are {len(tokens)} tokens")
    exponents = None if scales is None else tuple(int(e) for e in scales)
    return Probe(name, kind, reason, tuple(map(int, tokens)), prompt, exponents)


def as_bytes(arrays: Mapping[str, np.ndarray], schema: str = SCHEMA, **metadata: str) -> bytes:
    """A file of these keys; the same bytes for the same content."""
    from safetensors.numpy import save

    contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    data = save(contiguous, metadata={"schema": schema, **metadata})
    # The library writes metadata in an order that chance decides.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def described(probe: Probe) -> dict[str, np.ndarray]:
    """The keys of a file that say what a probe is."""
    found = {f"{probe.name}/{TOKENS}": np.array(probe.tokens, np.int32)}
    if probe.scales is not None:
        found[f"{probe.name}/{SCALES}"] = np.array(probe.scales, np.int32)
    if probe.prompt is not None:
        found[f"{probe.name}/{PROMPT}"] = np.array([probe.prompt], np.int32)
    return found


def _place(site: Site) -> tuple[int, int, str]:
    """Execution order."""
    order = {"embedding": -1, "norm": 1 << 30, "logits": (1 << 30) + 1}
    return order.get(site.kind, site.block or 0), site.kind == "block", site.part


def _reason(cause: BaseException) -> str:
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return one_line(cause)
