"""What the candidate is judged against: the oracle's arrays and the reference's own noise.

The truth is always PyTorch in float64, live or recorded in a golden; the noise is the rounding
error of whatever is the reference, at the dtype under test. Without a truth the reference's own
arrays stand in, and the verdict is at best inconclusive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from engine.files import ModelFiles
from engine.tokenizer import check_fits
from engine.weights import read_weights

from .backends import Backend
from .metrics import position_rms, relative_error
from .probes import GREEDY_TOKENS, TEXT, TEXTS, build_probes, decodable_length
from .types import ISOLATED, PROPAGATED, Evidence, Probe, Site, TokenFacts


class Reference(Protocol):
    """The side taken as right, with everything the checks ask of it."""

    name: str
    dtype: str

    @property
    def probes(self) -> list[Probe]: ...

    def evidence(self, probe: Probe) -> Evidence: ...

    def inside(self, probe: Probe, block: int) -> Evidence | None:
        """Evidence of the modules inside one block, isolated; None where it cannot be had."""
        ...

    def weights(self) -> Mapping[str, Any]: ...

    def tokens(self) -> TokenFacts | None:
        """What the tokenizer does with TEXTS; None without a tokenizer."""
        ...


class Truth(Protocol):
    """Gives the oracle's arrays of a probe, no noise yet."""

    def expected(self, probe: Probe, inside: int | None = None) -> Evidence | None: ...


class LiveReference:
    """A backend as reference, with the float64 oracle where there is one."""

    def __init__(self, files: ModelFiles, twin: Backend, truth: Truth | None) -> None:
        self.name, self.dtype = twin.name, twin.dtype
        self._files, self._twin, self._truth = files, twin, truth

    @cached_property
    def _facts(self) -> TokenFacts | None:
        if not has_tokenizer(self._files):
            return None
        facts = self._twin.tokens(list(TEXTS.values()))
        if facts is not None:
            check_fits(facts.max_id, facts.rows, self._files.folder)
        return facts

    def tokens(self) -> TokenFacts | None:
        return self._facts

    def weights(self) -> Mapping[str, Any]:
        """By the checkpoint's own names: as the twin has them, or as they stand in the file."""
        found = self._twin.checkpoint()
        return read_weights(self._files) if found is None else found

    @property
    def probes(self) -> list[Probe]:
        return self._probes

    @cached_property
    def _probes(self) -> list[Probe]:
        ids = self._facts.ids[TEXT] if self._facts else None
        bos_id = self._facts.bos_id if self._facts else None
        probes = build_probes(self._files.config, self.rows, ids, bos_id)
        prompt = next(p for kind in ("text", "random") for p in probes if p.kind == kind)
        return [*probes, self.continued(prompt)]

    def continued(self, probe: Probe) -> Probe:
        """A probe and the tokens the reference takes after it."""
        room = decodable_length(self._files.config) or len(probe.tokens) + GREEDY_TOKENS
        count = max(1, min(GREEDY_TOKENS, room - len(probe.tokens)))
        taken = self._twin.greedy(probe.tokens, count)
        return Probe(
            "greedy",
            "greedy",
            f"{probe.name!r} and the {count} tokens the reference takes after it",
            (*probe.tokens, *taken),
            len(probe.tokens),
        )

    def evidence(self, probe: Probe) -> Evidence:
        evidence = self._truth.expected(probe) if self._truth else None
        return with_noise(evidence, self._twin, probe)

    def inside(self, probe: Probe, block: int) -> Evidence | None:
        evidence = self._truth.expected(probe, block) if self._truth else None
        return evidence and with_noise(evidence, self._twin, probe, block)

    @property
    def rows(self) -> int:
        """Rows of the embedding: as the twin has it, or as config.json says."""
        if self._facts:
            return self._facts.rows
        return int(self._files.config.get("vocab_size", 0)) or 1

    def encode(self, text: str) -> tuple[int, ...]:
        """A text in the reference's tokens."""
        facts = self._twin.tokens([text])
        assert facts is not None, "asked only where there is a tokenizer"
        return facts.ids[text]


class Oracle:
    """The float64 model as truth."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def expected(self, probe: Probe, inside: int | None = None) -> Evidence:
        """Run once as it is, and once with what enters each block rounded to the dtype."""
        propagated: dict[Site, np.ndarray] = {}
        self._backend.forward(probe.tokens, propagated.__setitem__)
        inputs = [
            rounded(array, self._backend.dtype)
            for site, array in propagated.items()
            if site.kind in ("embedding", "block")
        ]
        isolated: dict[Site, np.ndarray] = {}
        self._backend.forward(probe.tokens, isolated.__setitem__, feed=inputs, inside=inside)
        expected = {ISOLATED: isolated, PROPAGATED: propagated}
        return Evidence(expected, {ISOLATED: {}, PROPAGATED: {}}, inputs, np.zeros(0))


def with_noise(
    evidence: Evidence | None, twin: Backend, probe: Probe, inside: int | None = None
) -> Evidence:
    """Add the twin's own error at every site. Without evidence the twin is its own truth."""
    if evidence is None:
        blind = Oracle(twin).expected(probe, inside)
        noise = {mode: dict.fromkeys(sites, 0.0) for mode, sites in blind.expected.items()}
        spread = np.zeros(len(probe.tokens))
        return replace(blind, noise=noise, spread=spread, has_oracle=False)

    noise: dict[str, dict[Site, float]] = {ISOLATED: {}, PROPAGATED: {}}
    spread = np.zeros(len(probe.tokens))

    def measure(mode: str) -> Any:
        def observe(site: Site, actual: np.ndarray) -> None:
            nonlocal spread
            expected = evidence.expected[mode].get(site)
            if expected is None:
                return
            noise[mode][site] = relative_error(actual, expected)
            if mode == PROPAGATED and site.kind == "logits":
                spread = position_rms(actual, expected)

        return observe

    if inside is None:
        twin.forward(probe.tokens, measure(PROPAGATED))
    twin.forward(probe.tokens, measure(ISOLATED), feed=evidence.inputs, inside=inside)
    return replace(evidence, noise=noise, spread=spread)


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """float64 to the nearest values of `dtype`, as float32 (which holds all of them)."""
    single = array.astype(np.float32)
    if dtype == "float32":
        return single
    if dtype == "float16":
        return single.astype(np.float16).astype(np.float32)
    bits = single.view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def has_tokenizer(files: ModelFiles) -> bool:
    """Whether the model's folder holds a tokenizer at all."""
    return any((files.folder / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
