"""Errors as numbers: relative rms, floors, margins. All arithmetic is float64.

Source of the ratio: docs/METHOD.md. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Half a unit of roundoff (2^-p for p bits of significand): no noise counts as less.
FLOOR = {"float32": 2.0**-25, "bfloat16": 2.0**-9, "float16": 2.0**-12}


def rms(x: np.ndarray) -> float:
    """Root of the mean square of all elements."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """rms(actual - expected) / rms(expected); inf when a value is not finite or shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    return _relative(*_squares(actual, expected))


def token_errors(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(T, features) twice -> (T,): each row's rms difference over the rms of all that is expected.

    Their root mean square is the relative error; inf where a row is not finite.
    """
    return _by_row(*_squares(actual, expected))


def both_errors(
    actual: np.ndarray, expected: np.ndarray, kept: np.ndarray | slice
) -> tuple[float, np.ndarray]:
    """The relative error of the rows that are `kept`, and the token errors of all."""
    squares, scale = _squares(actual, expected)
    return _relative(squares[kept], scale[kept]), _by_row(squares, scale)


def _squares(actual: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the differences, and of what is expected."""
    return np.square(actual.astype(np.float64) - expected), np.square(expected, dtype=np.float64)


def _relative(squares: np.ndarray, scale: np.ndarray) -> float:
    difference, size = (float(np.sqrt(x.mean())) if x.size else 0.0 for x in (squares, scale))
    if not np.isfinite(difference):
        return float("inf")
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def _by_row(squares: np.ndarray, scale: np.ndarray) -> np.ndarray:
    errors = np.sqrt(squares.mean(axis=1) / (scale.mean() or 1.0))
    return np.where(np.isnan(errors), np.inf, errors)


def first_bad_token(
    actual: np.ndarray, expected: np.ndarray, noise: float, limit: float
) -> int | None:
    """The first row of (T, features) whose own relative error is beyond limit * noise."""
    if actual.shape != expected.shape:
        return None
    bad = np.flatnonzero(token_errors(actual, expected) > limit * noise)
    return int(bad[0]) if bad.size else None


def position_rms(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(T, V), (T, V) -> (T,): absolute rms difference at each position."""
    return np.sqrt(np.mean(np.square(actual.astype(np.float64) - expected), axis=1))


def margins(logits: np.ndarray) -> np.ndarray:
    """(T, V) -> (T,): how far the best token is ahead of the second best."""
    best = np.partition(logits, -2, axis=1)[:, -2:]
    return best[:, 1] - best[:, 0]


def kl(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(T, V), (T, V) -> (T,): Kullback-Leibler divergence of the two softmaxes, in nats.

    With p the expected distribution and d the difference of the logits less its mean under p, it is
    log(1 + sum p (exp(d) - 1 - d)): exact where the two are so near that logarithms would cancel.
    """
    return kl_from(softmax(expected), actual, expected)


def kl_from(p: np.ndarray, actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """`kl`, where the softmax p of what is expected is known."""
    d = actual.astype(np.float64) - expected
    d = d - (p * d).sum(axis=1, keepdims=True)
    large = ~(np.abs(d) < 1e-3)  # few, where the two are near
    with np.errstate(over="ignore", invalid="ignore"):  # then it is infinite
        beyond = d * d * (0.5 + d / 6)
        beyond[large] = np.expm1(d[large]) - d[large]
        found = np.log1p((p * beyond).sum(axis=1))
    return np.where(np.isnan(found), np.inf, found)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(T, V) -> (T, V) in float64."""
    z = logits.astype(np.float64)
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def log_likelihood(logits: np.ndarray, following: Sequence[int]) -> float:
    """Mean log-probability, in nats, of the T - 1 tokens that follow each but the last position.

    `following` are their columns in the logits (T, V).
    """
    z = logits[:-1].astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    chosen = z[np.arange(len(z)), list(following)]
    return float(np.mean(chosen - np.log(np.exp(z).sum(axis=1))))
