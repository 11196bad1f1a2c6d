"""What a golden file holds, schema `harness.golden/2`: evidence of probes, written and read back.

Keys are those of a trace (`traces.py`), with the oracle's arrays, whole or as sketches; what has no
array's form stands as JSON in the metadata. Nothing here knows models, manifests or hashes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadGolden, BadTrace
from ..reference import rounded, seeded_feed
from ..scores import coarse, read_scores
from ..sketch import Sketch
from ..traces import MODES, PROMPT, SCALES, TOKENS, Tensors, described, name_of, read_probe
from ..types import LOGITS, PROPAGATED, Evidence, Probe, Site, TokenFacts

SCHEMA = "harness.golden/2"
KEY = "golden"  # of the JSON in the safetensors metadata
# What JSON and arrays of the wrong form raise where they are used.
REFUSED = (
    ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError,
    BadTrace,
)  # fmt: skip
WIDEST = 1 << 20  # features of what enters a block
FED = ("embedding", "block")  # sites in front of what isolated mode feeds
DROPPED = ("router", "groups")  # of a sketch: `close` says what it was needed for


class Content:
    """A golden file, read and checked. Raises BadGolden."""

    def __init__(self, path: Path, dtype: str) -> None:
        tensors = Tensors(path, BadGolden)
        self._dtype = dtype
        try:
            if (found := tensors.metadata.get("schema")) != SCHEMA:
                raise ValueError(f"schema {found!r}, not {SCHEMA!r}: record it again")
            record = json.loads(tensors.metadata[KEY])
            self._arrays = {name: tensors.read(name) for name in tensors.names}
            columns = record["sketch"]
            self.sketch = None if columns is None else Sketch(_positive(columns))
            self.sites = [_site(site) for site in record["sites"]]
            self._widths = {
                site: _positive(entry["width"])
                for site, entry in zip(self.sites, record["sites"], strict=True)
            }
            self.growth = _number(record.get("growth", 1.0), least=1.0)
            self.facts = _facts(record["tokens"])
            self._noise = {p["name"]: p["noise"] for p in record["probes"]}
            self.probes = [self._probe(p) for p in record["probes"]]
            self._evidence = {probe: self._read(probe) for probe in self.probes}
            for probe, evidence in self._evidence.items():
                self._check(probe, evidence)
        except REFUSED as cause:
            what = f"{cause} is missing" if isinstance(cause, KeyError) else str(cause)
            raise tensors.wrong(what) from None

    def evidence(self, probe: Probe) -> Evidence | None:
        """A fresh copy of what is recorded of a probe; None where it is not."""
        found = self._evidence.get(probe)
        return None if found is None else replace(found, feed=self._feed(probe, found))

    def _probe(self, entry: Mapping[str, Any]) -> Probe:
        name = str(entry["name"])
        keys = {what: f"{name}/{what}" for what in (TOKENS, SCALES, PROMPT)}
        small = {what: self._arrays[key] for what, key in keys.items() if key in self._arrays}
        return read_probe(name, str(entry["kind"]), str(entry["reason"]), small)

    def _read(self, probe: Probe) -> Evidence:
        arrays, name = self._arrays, probe.name
        expected = {
            mode: {
                site: arrays[key]
                for site in self.sites
                if (key := f"{name}/{mode}/{name_of(site)}") in arrays
            }
            for mode in MODES
        }
        noise = {
            mode: {
                site: _number(level, least=0.0)
                for site, level in zip(self.sites, levels, strict=True)
                if level is not None
            }
            for mode, levels in self._noise[name].items()
        }
        close: dict[str, dict[int, np.ndarray]] = {mode: {} for mode in MODES}
        prefix = f"{name}/close/"
        for key in (key for key in arrays if key.startswith(prefix)):
            mode, block = key.removeprefix(prefix).split("/")
            close[mode][int(block)] = arrays[key].astype(bool)
        tied = arrays.get(f"{name}/tied")
        known = None
        if self.sketch:
            prefix = f"{name}/scores/"
            kept = {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}
            known = read_scores(kept, len(probe.tokens), self._widths[LOGITS])
        return Evidence(
            expected, {}, noise, arrays[f"{name}/twin"],
            None if tied is None else tied.astype(bool),
            sketch=self.sketch, widths=self._widths, known_scores=known, close=close,
        )  # fmt: skip

    def _feed(self, probe: Probe, evidence: Evidence) -> dict[Site, np.ndarray]:
        values = {s: a for s, a in evidence.expected[PROPAGATED].items() if s.kind in FED}
        if probe.scales is None:
            return {site: rounded(array, self._dtype) for site, array in values.items()}
        length = len(probe.tokens)
        shaped = {site: np.broadcast_to(0.0, (length, self._widths[site])) for site in values}
        return seeded_feed(shaped, probe.scales)

    def _check(self, probe: Probe, evidence: Evidence) -> None:
        """Raise ValueError for arrays that do not fit each other."""
        length = len(probe.tokens)
        if max(probe.tokens) >= self._widths[LOGITS]:
            raise ValueError(f"probe {probe.name!r} holds token {max(probe.tokens)}, beyond logits")
        wide = [self._widths[s] for s in evidence.expected[PROPAGATED] if s.kind in FED]
        if max(wide, default=0) > WIDEST:
            raise ValueError(f"a site has {max(wide)} features")
        self._feed(probe, evidence)
        if self.sketch and probe.scales is None:
            raise ValueError(f"probe {probe.name!r} is a sketch without scales")
        of_length = [close for sites in evidence.close.values() for close in sites.values()]
        of_length += [] if evidence.tied is None else [evidence.tied]
        for mode, sites in evidence.expected.items():
            if LOGITS not in sites or set(evidence.noise[mode]) - set(sites):
                raise ValueError(f"probe {probe.name!r} lacks sites, {mode}")
            of_length += sites.values()
            for site, array in sites.items():
                columns = self._widths[site]
                if self.sketch and site.kind != "experts":
                    columns = min(columns, self.sketch.columns)
                if array.ndim != 2 or array.shape[1] != columns:
                    raise ValueError(f"{name_of(site)} of probe {probe.name!r} is {array.shape}")
        if any(len(array) != length for array in of_length):
            raise ValueError(f"an array of probe {probe.name!r} is not {length} tokens long")
        if evidence.twin.shape != evidence.logits.shape:
            raise ValueError(f"twin of probe {probe.name!r} is {evidence.twin.shape}")


def pack(
    found: Sequence[tuple[Probe, Evidence]], facts: TokenFacts | None, growth: float
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a golden file. Evidence that is to be a sketch is one already.

    `growth` is the reference's, in products as long as the model's.
    """
    arrays: dict[str, np.ndarray] = {}
    probes: list[dict[str, Any]] = []
    sites: dict[Site, int] = {}
    sketch = None
    for probe, evidence in found:
        sketch, name = evidence.sketch, probe.name
        sites |= {site: evidence.shape(site)[1] for site in evidence.expected[PROPAGATED]}
        arrays |= described(probe)
        for mode in MODES:
            for site, array in evidence.expected[mode].items():
                arrays[f"{name}/{mode}/{name_of(site)}"] = array
            for block, close in evidence.close.get(mode, {}).items():
                arrays[f"{name}/close/{mode}/{block}"] = close.astype(np.uint8)
        arrays[f"{name}/twin"] = evidence.twin
        if evidence.tied is not None:
            arrays[f"{name}/tied"] = evidence.tied.astype(np.uint8)
        if evidence.known_scores is not None:
            kept = evidence.known_scores.arrays()
            arrays |= {f"{name}/scores/{what}": array for what, array in kept.items()}
        levels = {m: [evidence.noise[m].get(s) for s in sites] for m in MODES}
        entry = {"name": name, "kind": probe.kind, "reason": probe.reason, "prompt": probe.prompt}
        if probe.prompt is not None:  # how far each greedy token was ahead of the next best
            at = slice(probe.prompt - 1, len(probe.tokens) - 1)
            entry["margins"] = evidence.scores.margin[at].tolist()
        entry["noise"] = levels
        probes.append(entry)
    record = {
        "sketch": sketch and sketch.columns,
        "growth": growth,
        "sites": [{**vars(site), "width": width} for site, width in sites.items()],
        "probes": probes,
        "tokens": facts
        and {**vars(facts), "ids": {text: list(ids) for text, ids in facts.ids.items()}},
    }
    return arrays, {KEY: json.dumps(record, allow_nan=False)}


def sketched(evidence: Evidence, probe: Probe, sketch: Sketch, dtype: str) -> Evidence:
    """Evidence with seeded inputs, made small where it is not yet.

    The noise stays that of the whole arrays.
    """
    from ..ties import Ties

    def small(site: Site, array: np.ndarray) -> np.ndarray:
        if site in evidence.widths:  # a sketch already
            return array
        return array.astype(np.int32) if site.kind == "experts" else sketch(array)

    expected = {
        mode: {site: small(site, a) for site, a in sites.items() if site.kind not in DROPPED}
        for mode, sites in evidence.expected.items()
    }
    close = {mode: Ties(evidence, mode, dtype).margins() for mode in MODES}
    wide = {site: array.shape[1] for site, array in evidence.expected[PROPAGATED].items()}
    return replace(
        evidence,
        expected=expected,
        noise={m: {s: n for s, n in sites.items() if s.kind not in DROPPED}
               for m, sites in evidence.noise.items()},
        twin=sketch(evidence.twin),
        sketch=sketch,
        widths={**wide, **evidence.widths},
        known_scores=coarse(evidence.scores, probe.tokens),
        close=close,
    )  # fmt: skip


def _site(entry: Mapping[str, Any]) -> Site:
    kind, block = str(entry["kind"]), entry["block"]
    if not "".join(map(str, entry.values())).isprintable():
        raise ValueError(f"the site {entry['path']!r} cannot be printed")
    return Site(kind, None if block is None else int(block), str(entry["part"]), str(entry["path"]))


def _facts(entry: Mapping[str, Any] | None) -> TokenFacts | None:
    if entry is None:
        return None
    ids = {text: tuple(map(int, found)) for text, found in entry["ids"].items()}
    eos_ids = tuple(map(int, entry["eos_ids"]))
    return TokenFacts(ids, entry["bos_id"], eos_ids, int(entry["max_id"]), int(entry["rows"]))


def _number(value: Any, least: float) -> float:
    if not least <= (number := float(value)) < math.inf:
        raise ValueError(f"{value!r} is no number from {least:g} on")
    return number


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no count")
    return value
