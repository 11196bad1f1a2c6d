"""What each library does to logits, once more: in float64, with lists, a library a function.

Written from the libraries' sources and not from the engine's. `Edge` says that a decision hangs on
less than float32 can hold, so that either answer is right.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from engine.sampling import Sampling

NEAR = 2e-5  # of a sum of probabilities or of a logit up to 20: sums of float32 are off by less


class Edge(Exception):
    """A threshold and what is compared with it are the same to float32."""


Kept = list[int]
Scores = np.ndarray


def transformers(x: Scores, wish: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Scores:
    x = penalised(biased(x, wish), wish, [*prompt, *answer], answer)
    x = x / wish.temperature
    if wish.top_k:
        x = only(x, at_least_as_good_as_the_kth(x, wish.top_k))
    if wish.top_p < 1:
        x = only(x, until(by(-x), softmax(x), wish.top_p, reached=True))
    if wish.min_p:
        x = only(x, near_the_best(x, wish.min_p))
    return typical_with_equals(x, wish)


def mlx_lm(x: Scores, wish: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Scores:
    text = [*prompt, *answer][-20:]
    x = penalised(biased(x, wish), wish, text, text)
    if wish.top_p < 1:
        kept = until(by(-x), softmax(x), wish.top_p, reached=True)
        least = min(x[i] for i in kept)
        x = only(x, [i for i in range(x.size) if x[i] >= least])
    if wish.min_p:
        x = only(x, near_the_best(x, wish.min_p))
    x = typical_with_equals(x, wish)  # which mlx-lm has not
    if wish.top_k:
        x = only(x, by(-x)[: wish.top_k])
    return x / wish.temperature


def llama_cpp(x: Scores, wish: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Scores:
    text = [*prompt, *answer][-64:]
    x = penalised(biased(x, wish), wish, text, text)
    if wish.top_k:
        x = only(x, by(-x)[: wish.top_k])
    if wish.typical_p < 1:
        x = only(x, until(by(surprise(x)), softmax(x), wish.typical_p, reached=False))
    if wish.top_p < 1:
        x = only(x, until(by(-x), softmax(x), wish.top_p, reached=True))
    if wish.min_p:
        x = only(x, near_the_best(x, wish.min_p))
    return x / wish.temperature


REFERENCES: dict[str, Callable[..., Scores]] = {
    "transformers": transformers,
    "mlx-lm": mlx_lm,
    "llama.cpp": llama_cpp,
}


def softmax(x: Scores) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def biased(x: Scores, wish: Sampling) -> Scores:
    x = np.array(x, np.float64)
    for token, bias in wish.logit_bias.items():
        x[token] += bias
    return x


def penalised(x: Scores, wish: Sampling, repeated: Sequence[int], counted: Sequence[int]) -> Scores:
    for token in set(repeated):
        negative, penalty = x[token] < 0, wish.repetition_penalty
        x[token] = x[token] * penalty if negative else x[token] / penalty
    for token, times in Counter(counted).items():
        x[token] -= wish.presence_penalty + times * wish.frequency_penalty
    return x


def at_least_as_good_as_the_kth(x: Scores, k: int) -> Kept:
    least = np.sort(x)[::-1][min(k, x.size) - 1]
    return [i for i in range(x.size) if x[i] >= least]


def near_the_best(x: Scores, p: float) -> Kept:
    return [i for i in range(x.size) if apart(x[i], x.max() + math.log(p)) >= 0]


def typical_with_equals(x: Scores, wish: Sampling) -> Scores:
    if wish.typical_p == 1:
        return x
    shift = surprise(x)
    kept = until(by(shift), softmax(x), wish.typical_p, reached=True)
    furthest = max(shift[i] for i in kept)
    return only(x, [i for i in range(x.size) if apart(shift[i], furthest) <= 0])


def surprise(x: Scores) -> np.ndarray:
    """How far from the entropy each token's own surprise is."""
    p = softmax(x)
    logs = np.log(p, where=p > 0, out=np.full(p.shape, -np.inf))
    return np.abs(-logs + (p[p > 0] * logs[p > 0]).sum())


def by(key: np.ndarray) -> list[int]:
    """Ids by a key, of equals the first ones first."""
    order = sorted(range(key.size), key=lambda i: (key[i], i))
    for one, next in itertools.pairwise(order):
        if key[one] != key[next]:
            apart(key[next], key[one])
    return order


def until(order: Sequence[int], p: np.ndarray, mass: float, *, reached: bool) -> Kept:
    """The first ones, until their sum is `mass` or, if that is not enough, more."""
    kept, total = [], 0.0
    for token in order:
        kept.append(token)
        total += p[token]
        side = apart(total, mass)
        if side > 0 or (side == 0 and reached):
            break
    return kept


def apart(value: float, threshold: float) -> float:
    """Their difference. Raises Edge where float32 could not tell."""
    if value == threshold:
        return 0.0
    if abs(value - threshold) < NEAR:
        raise Edge
    return value - threshold


def only(x: Scores, kept: Kept) -> Scores:
    rest = np.full(x.shape, -np.inf)
    rest[kept] = x[kept]
    return rest
