"""What the candidate is judged against: the oracle's arrays and the reference's own noise.

The truth is always PyTorch in float64, live or recorded in a golden; the noise is the rounding
error of whatever is the reference, at the dtype under test. Without a truth the reference's own
arrays stand in, and the verdict is at best inconclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from engine.files import ModelFiles
from engine.tokenizer import check_fits, tokenizer_file
from engine.weights.plain import plain_weights

from .backends import Backend
from .errors import BadTrace, ReferenceUnavailable
from .metrics import FLOOR, relative_error
from .probes import GREEDY, GREEDY_TOKENS, TEXTS, Kind, decodable_length, kinds_of, text_settings
from .products import growth
from .seeded import block_input, exponent_for
from .ties import Ties
from .types import ISOLATED, LOGITS, PROPAGATED, Evidence, Probe, Site, TokenFacts

Shapes = Mapping[Site, tuple[int, ...]]
Passes = dict[tuple[int, ...], dict[Site, np.ndarray]]  # tokens -> what was seen on them
PROMPTS = 3  # probes of each kind, where the reference is live


class Reference(Protocol):
    """The side taken as right, with everything the checks ask of it."""

    name: str
    dtype: str
    recorded: bool  # whether it knows its own probes only

    @property
    def probes(self) -> list[Probe]: ...

    def growth(self, length: int) -> float:
        """How its rounding grows in products of so many terms, see `products.growth`."""
        ...

    def more(self, kind: str, i: int) -> Probe | None:
        """The i-th probe of a kind; None where there is no further one."""
        ...

    def evidence(self, probe: Probe) -> Evidence: ...

    def inside(self, probe: Probe, block: int, shapes: Shapes, known: Evidence) -> Evidence | None:
        """Evidence of the modules inside one block, each fed the oracle's values of the ones
        before it; None where it cannot be had. `shapes` holds what the candidate shows there:
        nothing else is fed, so that both sides compute the same from the same. `known` is the
        evidence of the probe."""
        ...

    def weights(self) -> Mapping[str, Any]: ...

    def tokens(self) -> TokenFacts | None:
        """What the tokenizer does with the probe texts; None without a tokenizer."""
        ...


class Truth(Protocol):
    """Gives the oracle's arrays of a probe, no noise yet; and those inside a block, given them."""

    def expected(self, probe: Probe) -> Evidence: ...

    def inside(self, probe: Probe, block: int, shapes: Shapes, known: Evidence) -> Evidence: ...


# Half units of roundoff at which a reference is not noisy but wrong. The noisiest right one seen
# (gemma2 with peaked attention, float32) is at about 100.
IMPLAUSIBLE = 4096


class LiveReference:
    """A backend as reference, with the float64 oracle where there is one."""

    def __init__(
        self,
        files: ModelFiles,
        twin: Any,
        truth: Truth | None,
        prompts: int = PROMPTS,
        *,
        greedy: bool = True,
    ) -> None:
        """`twin` is a Backend, or Streamed and asked for tokens alone.

        `prompts` is how many probes of each kind there are to begin with; `greedy` says whether the
        reference's own continuation is one.
        """
        self._greedy = greedy
        self.name, self.dtype = twin.name, twin.dtype
        self._files, self._twin, self.truth, self._prompts = files, twin, truth, prompts
        self.recorded, self.file = hasattr(twin, "probes"), getattr(twin, "file", None)

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

    def side(self) -> Any:
        """The twin's tokenizer, to be asked anything; None where it shows none."""
        side = getattr(self._twin, "side", None)
        return side() if side and self._facts else None

    def weights(self) -> Mapping[str, Any]:
        """By the original's names: as the twin has them, or as they stand in the file."""
        found = self._twin.checkpoint()
        return plain_weights(self._files, self.dtype) if found is None else found

    @property
    def probes(self) -> list[Probe]:
        return self._probes

    @cached_property
    def _probes(self) -> list[Probe]:
        if self.recorded:
            return list(self._twin.probes)  # type: ignore[attr-defined]
        probes = [kind.probe(i) for kind in self._kinds for i in range(self._prompts)]
        if not self._greedy:
            return probes
        prompt = next(p for kind in ("text", "random") for p in probes if p.kind == kind)
        return [*probes, self.continued(prompt)]

    def growth(self, length: int) -> float:
        return growth(getattr(self._twin, "sums", "torch"), length, self.dtype)

    def more(self, kind: str, i: int) -> Probe | None:
        if self.recorded:
            return None
        return next((k.probe(i) for k in self._kinds if k.name == kind), None)

    @property
    def _kinds(self) -> list[Kind]:
        # Not kept: they hold this reference, and both models would outlive their rung.
        encode = self.encode if self._facts else None
        bos_id = self._facts.bos_id if self._facts else None
        return kinds_of(self._files.config, self.rows, bos_id, encode)

    def continued(self, probe: Probe) -> Probe:
        """A probe and the tokens the reference takes after it."""
        room = decodable_length(self._files.config) or len(probe.tokens) + GREEDY_TOKENS
        count = max(1, min(GREEDY_TOKENS, room - len(probe.tokens)))
        taken = self._twin.greedy(probe.tokens, count)
        return Probe(
            GREEDY,
            GREEDY,
            f"{probe.name!r} and the {count} tokens the reference takes after it",
            (*probe.tokens, *taken),
            len(probe.tokens),
        )

    @property
    def has_oracle(self) -> bool:
        return self.truth is not None

    def evidence(self, probe: Probe) -> Evidence:
        """With the twin's own error at every site; without a truth, its arrays stand for it."""
        if self.truth is None:
            blind = Oracle(self._twin, self.dtype).expected(probe)
            noise = {mode: dict.fromkeys(sites, 0.0) for mode, sites in blind.expected.items()}
            return replace(blind, noise=noise, has_oracle=False)
        evidence = self.truth.expected(probe)
        errors = Errors(evidence, PROPAGATED, self.dtype)
        twin = self._twin.forward(probe.tokens, errors)
        self._check_plausible(probe, evidence.noise[PROPAGATED])
        self._isolated(probe, evidence)
        return replace(evidence, twin=twin, tied=errors.ties.tied(LOGITS))

    def inside(self, probe: Probe, block: int, shapes: Shapes, known: Evidence) -> Evidence | None:
        if self.truth is None:
            return None
        evidence = self.truth.inside(probe, block, shapes, known)
        self._isolated(probe, evidence, block)
        return evidence

    def _isolated(self, probe: Probe, evidence: Evidence, inside: int | None = None) -> None:
        errors = Errors(evidence, ISOLATED, self.dtype)
        self._twin.forward(probe.tokens, errors, feed=evidence.feed, inside=inside)

    def _check_plausible(self, probe: Probe, noise: Mapping[Site, float]) -> None:
        """Raise ReferenceUnavailable for a reference that is wrong: its errors would be limits.

        PyTorch is what the noise is defined by; of others only what rounding makes is noise.
        """
        most = min(IMPLAUSIBLE * FLOOR[self.dtype], 0.5)
        wrong = next((site for site, error in noise.items() if not error <= most), None)
        if wrong is not None and getattr(self._twin, "sums", "") != "torch":
            raise ReferenceUnavailable(
                f"reference {self.name} is off by {noise[wrong]:.2g} at {wrong.path}, probe "
                f"{probe.name!r}, which rounding to {self.dtype} does not do: compare it with "
                "torch first, as the candidate"
            )

    @property
    def rows(self) -> int:
        """Rows of the embedding: as the twin has it, or as config.json says."""
        if self._facts:
            return self._facts.rows
        return int(text_settings(self._files.config).get("vocab_size", 0)) or 1

    def encode(self, text: str) -> tuple[int, ...]:
        """A text in the reference's tokens."""
        facts = self._twin.tokens([text])
        assert facts is not None, "asked only where there is a tokenizer"
        return facts.ids[text]


class Remembered:
    """A reference that keeps all evidence it was asked for, for many candidates of one model.

    Everything stays in memory: for tiny models.
    """

    def __init__(self, reference: Reference) -> None:
        self.name, self.dtype = reference.name, reference.dtype
        self.recorded = reference.recorded
        self.more, self.weights, self.tokens = reference.more, reference.weights, reference.tokens
        self.growth = reference.growth
        self._reference = reference
        self._found: dict[Hashable, Evidence | None] = {}

    @property
    def probes(self) -> list[Probe]:
        return self._reference.probes

    def side(self) -> Any:
        return self._side

    @cached_property
    def _side(self) -> Any:
        from .tokenizers import remembering

        side = getattr(self._reference, "side", lambda: None)()
        return None if side is None else remembering(side)

    def evidence(self, probe: Probe) -> Evidence:
        found = self._remember(probe, None, lambda: self._reference.evidence(probe))
        assert found is not None
        return found

    def inside(self, probe: Probe, block: int, shapes: Shapes, known: Evidence) -> Evidence | None:
        return self._remember(
            probe,
            (block, frozenset(shapes.items())),
            lambda: self._reference.inside(probe, block, shapes, known),
        )

    def _remember(
        self, probe: Probe, what: Hashable, find: Callable[[], Evidence | None]
    ) -> Evidence | None:
        key = probe.name, what
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]


class Oracle:
    """The float64 model as truth at a dtype; or any backend, taken at its word.

    `passes` are what it is known to give as it is: each is used once. With `keep` those it gives
    are kept there, for a later rung of the same weights.
    """

    def __init__(
        self, backend: Backend, dtype: str, passes: Passes | None = None, *, keep: bool = False
    ) -> None:
        self.backend, self._dtype, self._keep = backend, dtype, keep
        self.passes: Passes = {} if passes is None else passes

    def expected(self, probe: Probe) -> Evidence:
        """Run as it is, then with what enters each block rounded to the dtype, or seeded."""
        propagated = self._propagated(probe.tokens)
        feed = self._feed(propagated, ("embedding", "block"))
        if probe.scales is not None:
            feed = seeded_feed(feed, probe.scales)
        isolated: dict[Site, np.ndarray] = {}
        self.backend.forward(probe.tokens, isolated.__setitem__, feed=feed)
        return _noiseless(isolated, propagated, feed)

    def inside(self, probe: Probe, block: int, shapes: Shapes, known: Evidence) -> Evidence:
        """The same for what the modules of one block give, those in `shapes`."""
        feed, isolated = dict(known.feed), {}
        self.backend.forward(probe.tokens, isolated.__setitem__, feed=feed, inside=block)
        feed |= self._feed(
            {s: a for s, a in isolated.items() if shapes.get(s) == a.shape}, ("module",)
        )
        self.backend.forward(probe.tokens, isolated.__setitem__, feed=feed, inside=block)
        return _noiseless(isolated, known.expected[PROPAGATED], feed)

    def _propagated(self, tokens: tuple[int, ...]) -> dict[Site, np.ndarray]:
        found = self.passes.pop(tokens, None)
        if found is None:
            found = {}
            self.backend.forward(tokens, found.__setitem__)
        if self._keep:
            self.passes[tokens] = found
        return found

    def _feed(
        self, arrays: Mapping[Site, np.ndarray], kinds: Collection[str]
    ) -> dict[Site, np.ndarray]:
        return {s: rounded(a, self._dtype) for s, a in arrays.items() if s.kind in kinds}


def _noiseless(
    isolated: dict[Site, np.ndarray],
    propagated: dict[Site, np.ndarray],
    feed: dict[Site, np.ndarray],
) -> Evidence:
    noise: dict[str, dict[Site, float]] = {ISOLATED: {}, PROPAGATED: {}}
    arrays = {ISOLATED: isolated, PROPAGATED: propagated}
    return Evidence(arrays, feed, noise, propagated[LOGITS])


class Errors:
    """An observer that writes the relative error of what it is shown into the evidence's noise.

    Tokens whose experts are not the oracle's, within noise, are left out (`ties.Ties`); a site
    where none is left has no noise.
    """

    def __init__(self, evidence: Evidence, mode: str, dtype: str) -> None:
        self._evidence, self._mode = evidence, mode
        self.ties = Ties(evidence, mode, dtype)

    def __call__(self, site: Site, actual: np.ndarray) -> None:
        expected = self._evidence.expected[self._mode].get(site)
        if expected is None:
            return
        self.ties.see(site, actual)
        keep, actual = self.ties.kept(site), self._evidence.view(site, actual)
        if len(expected[keep]):
            self._evidence.noise[self._mode][site] = relative_error(actual[keep], expected[keep])


def with_scales(probe: Probe, evidence: Evidence) -> Probe:
    """The same probe with seeded inputs of the size of what the evidence fed."""
    return replace(probe, scales=tuple(exponent_for(array) for array in evidence.feed.values()))


def seeded_feed(arrays: Mapping[Site, np.ndarray], scales: Sequence[int]) -> dict[Site, np.ndarray]:
    """Seeded inputs in place of the values (T, C) at the sites in front of blocks and last norm."""
    if {0 if s.block is None else s.block + 1 for s in arrays} != set(range(len(scales))):
        raise BadTrace(
            f"there are exponents for {len(scales) - 1} blocks, the model has {len(arrays) - 1}"
        )
    found = {}
    for site, array in arrays.items():
        place, (length, width) = 0 if site.block is None else site.block + 1, array.shape
        found[site] = block_input(place, length, width, scales[place])
    return found


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
    return tokenizer_file(files.folder) is not None
