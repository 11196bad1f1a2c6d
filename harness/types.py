"""The words of a comparison as data. Nothing here judges, prints or raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .scores import Scores, scores_of
from .sketch import Sketch

PASS, FAIL, ERROR, INCONCLUSIVE, SKIP = "pass", "fail", "error", "inconclusive", "skip"
SEVERITY = (FAIL, ERROR, INCONCLUSIVE, PASS, SKIP)  # the first one present is the verdict
EXIT_STATUS = {PASS: 0, FAIL: 1, ERROR: 2, INCONCLUSIVE: 3, SKIP: 0}

ISOLATED, PROPAGATED = "isolated", "propagated"
JUDGED_KINDS = ("embedding", "block", "norm", "logits")  # others localise, or are choices


@dataclass(frozen=True)
class Site:
    """A named point where a tensor is observed.

    `kind` is embedding (what enters block 0), block, module (inside a block), router (what the
    choice of a block's experts is made by), groups (of experts: how far above or below the edge of
    being chosen from), experts (the ones chosen), norm (the last one) or logits. `path` is the
    transformers module path; sites of two backends are the same site when kind, block and `part`
    (the path below the block) agree. Three points inside attention are no module's output; their
    parts end in QUERY, KEY and CONTEXT.
    """

    kind: str
    block: int | None
    part: str = ""
    path: str = field(default="", compare=False)


LOGITS = Site("logits", None, "", "lm_head")
QUERY, KEY, CONTEXT = "query", "key", "context"  # into attention (norm, rotary done) and out of it


@dataclass(frozen=True)
class Probe:
    """A token sequence with the reason it exists.

    Probes of one `kind` are alike but for chance: they are the sample that statistics are taken
    over. `prompt` is how many of the tokens were given, where the rest is a reference's
    continuation. `scales` are exponents of the seeded inputs (`seeded.py`) of every block and the
    last norm in isolated mode; without them the oracle's own values are what they are fed.
    """

    name: str
    kind: str
    reason: str
    tokens: tuple[int, ...]
    prompt: int | None = None
    scales: tuple[int, ...] | None = None


@dataclass
class Evidence:
    """What one probe is judged against at one dtype.

    `expected[mode][site]` is the oracle's array (T, features), float64. `feed[site]` is what
    replaces the value at a site in isolated mode, exactly representable in the dtype.
    `noise[mode][site]` is the reference's own relative error there; a site that lacks it cannot be
    judged. `twin` holds the reference's own logits (T, V), propagated; `tied` (T,) the tokens it
    sent to other experts than the oracle, within noise.

    With a `sketch` arrays are projections (T, columns) of what has `widths[site]` features, logits
    too, and `known_scores` stand for what they were. `close[mode][block]` (T,) says where the
    oracle's choice of experts was within noise, where there is no router to tell it from.
    """

    expected: dict[str, dict[Site, np.ndarray]]
    feed: dict[Site, np.ndarray]
    noise: dict[str, dict[Site, float]]
    twin: np.ndarray
    tied: np.ndarray | None = None
    has_oracle: bool = True
    sketch: Sketch | None = None
    widths: Mapping[Site, int] = field(default_factory=dict)
    known_scores: Scores | None = None
    close: Mapping[str, Mapping[int, np.ndarray]] = field(default_factory=dict)

    def view(self, site: Site, actual: np.ndarray) -> np.ndarray:
        """(T, features) of somebody at a site, in the form that `expected` has."""
        fits = self.widths.get(site) == actual.shape[1]
        return self.sketch(actual) if self.sketch and fits else actual

    def shape(self, site: Site, mode: str = PROPAGATED) -> tuple[int, int]:
        """(T, features) at a site, before any projection."""
        expected = self.expected[mode][site]
        return len(expected), self.widths.get(site, expected.shape[1])

    @cached_property
    def scores(self) -> Scores:
        """What the next tokens are judged by."""
        return self.known_scores or scores_of(self.logits, self.twin)

    @property
    def logits(self) -> np.ndarray:
        """(T, V) of the oracle, propagated."""
        return self.expected[PROPAGATED][LOGITS]


@dataclass(frozen=True)
class TokenFacts:
    """What a tokenizer does: ids of each probe text, special ids, and the embedding's rows."""

    ids: Mapping[str, tuple[int, ...]]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    max_id: int
    rows: int


@dataclass(frozen=True)
class SiteDiff:
    """One site of one probe: relative errors, their ratio, and what was allowed."""

    site: Site
    mode: str
    probe: str
    dtype: str
    error: float
    noise: float
    ratio: float
    limit: float
    verdict: str
    note: str | None = None
    token: int | None = None  # the first token that is off, where the site fails
    ties: int = 0  # tokens left out, because their experts were within noise of other ones

    @property
    def judged(self) -> bool:
        """Modules inside a block localise; they never fail a comparison by themselves."""
        return self.site.kind in JUDGED_KINDS


@dataclass(frozen=True)
class TokenMap:
    """How far single tokens of one probe are off, site by site, in one mode.

    `rows[site]` (T,) holds ratios of a token's error to the site's noise, None of tokens left out
    as ties; `limit` is that of the whole site.
    """

    probe: Probe
    mode: str
    dtype: str
    limit: float
    rows: Mapping[Site, tuple[float | None, ...]]


@dataclass(frozen=True)
class Decision:
    """What the prompts of one kind say about one measure at one site.

    `measure` names what the ratio is of (a mode, "head", "distribution", "route"); `ratios` has
    one per prompt; `tests` things were judged together. The mean of the logarithms lies between
    log `low` and log `high`, at a risk of `policy.ALPHA` for all of them; `more` is how many
    further prompts would decide, where the verdict is inconclusive and that can be told.
    """

    measure: str
    dtype: str
    kind: str
    site: Site | None
    ratios: tuple[float, ...]
    tests: int
    low: float
    high: float
    limit: float
    verdict: str
    more: int | None = None


@dataclass(frozen=True)
class Divergence:
    """The first thing that is not as it should be, in execution order."""

    check: str
    probe: str
    message: str
    site: str | None = None
    block: int | None = None
    error: float | None = None
    noise: float | None = None
    ratio: float | None = None
    limit: float | None = None
    token: int | None = None
    code: str | None = None


@dataclass
class CheckResult:
    """One parity question, answered; or, `reported`, figures that are no part of the verdict."""

    name: str
    verdict: str
    reason: str | None = None
    measures: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    divergence: Divergence | None = None
    reported: bool = False


@dataclass
class Verdict:
    """All checks of one comparison."""

    model: str
    candidate: str
    reference: str
    dtype: str
    device: str
    checks: list[CheckResult] = field(default_factory=list)
    sites: list[SiteDiff] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    token_maps: list[TokenMap] = field(default_factory=list)
    calibration: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    diagnosis: str | None = None
    error: str | None = None
    ranks: int = 1  # processes of the candidate

    @property
    def verdict(self) -> str:
        """The most severe answer of any check; "error" when nothing could be asked."""
        if self.error is not None:
            return ERROR
        given = {check.verdict for check in self.checks if not check.reported} - {SKIP}
        return next((v for v in SEVERITY if v in given), INCONCLUSIVE)

    @property
    def exit_status(self) -> int:
        return EXIT_STATUS[self.verdict]

    @property
    def prompts_needed(self) -> int | None:
        """How many more prompts of a kind would decide what is open, where that is known."""
        return max((d.more for d in self.decisions if d.more is not None), default=None)

    @property
    def first_divergence(self) -> Divergence | None:
        """That of the first check, in the order asked, that did not hold."""
        return next(self._divergences(), None)

    def _divergences(self) -> Iterator[Divergence]:
        for check in self.checks:
            if check.verdict == FAIL and check.divergence is not None:
                yield check.divergence
