"""What the next token is judged by at each position: probabilities, and who is ahead by how much.

Over the whole vocabulary, or, where a golden has no room for that, over the likeliest tokens and
all others taken together: coarser, but as true, since the same is done to both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics import margins, position_rms

LIKELIEST = 31


@dataclass(frozen=True)
class Scores:
    """The oracle's and the reference's scores of one probe.

    `oracle` and `twin` (T, m) are logits, of every token or, with `ids` (T, m - 1), of those and
    all others together; the next token of the probe stands first. `best` (T,) is the oracle's best
    token, `margin` (T,) how far its logit is ahead of the second, `noise` (T,) the reference's rms
    error over all logits, `peak` (T,) the largest size of one, `spread` their standard deviation.
    """

    oracle: np.ndarray
    twin: np.ndarray
    best: np.ndarray
    margin: np.ndarray
    noise: np.ndarray
    peak: np.ndarray
    spread: float
    ids: np.ndarray | None = None

    def of(self, logits: np.ndarray) -> np.ndarray:
        """(T, V) -> (T, m) of somebody's logits."""
        return logits if self.ids is None else _gathered(logits, self.ids)

    def following(self, tokens: Sequence[int]) -> list[int]:
        """The columns of the tokens after the first."""
        return list(tokens[1:]) if self.ids is None else [0] * (len(tokens) - 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything by name, to be written down."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return {name: np.atleast_1d(value) for name, value in known.items()}


def scores_of(oracle: np.ndarray, twin: np.ndarray) -> Scores:
    """Scores over the whole vocabulary, of logits (T, V)."""
    return Scores(
        oracle, twin, oracle.argmax(1), margins(oracle), position_rms(twin, oracle),
        np.abs(oracle).max(1), float(np.std(oracle, axis=1).mean()),
    )  # fmt: skip


def coarse(whole: Scores, tokens: Sequence[int]) -> Scores:
    """The same of the next token, the LIKELIEST, and all others together."""
    count = min(LIKELIEST, whole.oracle.shape[1] - 2)
    after = np.array([*tokens[1:], int(whole.best[-1])])
    ranked = np.argsort(-whole.oracle, axis=1, kind="stable")[:, : count + 1]
    others = [row[row != first][:count] for row, first in zip(ranked, after, strict=True)]
    ids = np.concatenate([after[:, None], np.stack(others)], axis=1)
    known = {name: vars(whole)[name] for name in ("best", "margin", "noise", "peak", "spread")}
    return Scores(_gathered(whole.oracle, ids), _gathered(whole.twin, ids), **known, ids=ids)


def read_scores(arrays: Mapping[str, np.ndarray], length: int, rows: int) -> Scores:
    """What `coarse` made of logits (length, rows), and `arrays` wrote down.

    Raises KeyError, IndexError, TypeError or ValueError for what cannot be that.
    """
    ids = arrays["ids"]
    wide = (length, ids.shape[1] + 1)
    shapes = {"ids": (length, ids.shape[1]), "oracle": wide, "twin": wide, "spread": (1,)}
    for name, array in arrays.items():
        if array.shape != shapes.get(name, (length,)):
            raise ValueError(f"scores {name!r} have shape {list(array.shape)}")
    if ids.dtype.kind not in "iu" or not 0 <= ids.min() <= ids.max() < rows:
        raise ValueError("scores are of ids beyond the vocabulary")
    (spread,) = map(float, arrays["spread"])
    return Scores(**{**arrays, "spread": spread})


def _gathered(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(T, V), (T, n) -> (T, n + 1): log-probabilities, those of all other tokens summed up."""
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    z = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    named = np.take_along_axis(z, ids, axis=1)
    np.put_along_axis(z, ids, -np.inf, axis=1)
    with np.errstate(divide="ignore"):
        rest = np.log(np.exp(z).sum(axis=1, keepdims=True))
    return np.concatenate([named, np.maximum(rest, -745.0)], axis=1)
