"""What each wish does to logits: (V,) float32 to (V,) float32, -inf for what is ruled out.

All of it is lazy and stays on the device; nothing looks at a value. Filters keep at least one
token, and none brings back what another ruled out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from .orders import Order
from .wishes import Sampling

_OUT = -float("inf")
# A float32 to divide by. With less, tokens behind the best by a rounding are behind by infinity.
_COLDEST = 1e-20


def temperature(x: mx.array, sampling: Sampling, order: Order) -> mx.array:
    """Logits over the temperature, the best at 0, so that nothing overflows but to -inf."""
    return (x - x.max()) / max(sampling.temperature, _COLDEST)


def top_k(x: mx.array, sampling: Sampling, order: Order) -> mx.array:
    """The k best."""
    k = sampling.top_k
    if not 0 < k < x.size:
        return x
    least = mx.partition(x, x.size - k)[x.size - k]
    return _only(x, x, least, mx.array(k), "top_k" in order.with_equals)


def top_p(x: mx.array, sampling: Sampling, order: Order) -> mx.array:
    """The best until their probabilities reach p together, the token included that reaches it."""
    if sampling.top_p == 1:
        return x
    ascending = mx.sort(x)
    better = mx.cumsum(mx.softmax(ascending, precise=True), reverse=True, inclusive=False)
    count = mx.maximum((better < sampling.top_p).sum(), 1)  # a p that float32 rounds to 0
    return _only(x, x, mx.take(ascending, x.size - count), count, "top_p" in order.with_equals)


def min_p(x: mx.array, sampling: Sampling, order: Order) -> mx.array:
    """Those at least p times as probable as the best."""
    if sampling.min_p == 0:
        return x
    return mx.where(x < x.max() + math.log(sampling.min_p), _OUT, x)


def typical_p(x: mx.array, sampling: Sampling, order: Order) -> mx.array:
    """Those whose surprise is next to its mean, the entropy, until they are probable enough.

    Locally typical sampling, arXiv:2202.00666.
    """
    if sampling.typical_p == 1:
        return x
    logs = x - mx.logsumexp(x)
    p = mx.exp(logs)
    entropy = -mx.where(p > 0, p * logs, 0).sum()
    closeness = -mx.abs(logs + entropy)
    nearest = mx.argsort(-closeness)
    mass = mx.cumsum(p[nearest])
    short = mass < sampling.typical_p if order.typical_reaches else mass <= sampling.typical_p
    count = mx.minimum(short.sum() + 1, x.size)
    least = closeness[mx.take(nearest, count - 1)]
    return _only(x, closeness, least, count, "typical_p" in order.with_equals)


Filter = Callable[[mx.array, Sampling, Order], mx.array]
FILTERS: dict[str, Filter] = {f.__name__: f for f in (temperature, top_k, top_p, min_p, typical_p)}


def repeated(x: mx.array, tokens: mx.array, penalty: float) -> mx.array:
    """Logits of (N,) different token ids made smaller: divided, or multiplied where negative.

    The penalty of CTRL, arXiv:1909.05858, section 4.1, as all libraries correct it for signs.
    """
    seen = x[tokens]
    return mx.put_along_axis(x, tokens, mx.where(seen < 0, seen * penalty, seen / penalty), axis=0)


def added(x: mx.array, tokens: mx.array, values: mx.array) -> mx.array:
    """Logits of (N,) different token ids with (N,) values added."""
    return mx.put_along_axis(x, tokens, x[tokens] + values, axis=0)


def allowed_only(x: mx.array, allowed: mx.array) -> mx.array:
    """Logits of the tokens where (V,) booleans allow it."""
    return mx.where(allowed, x, _OUT)


def _only(x: mx.array, value: mx.array, least: mx.array, count: mx.array, equals: bool) -> mx.array:
    """`x` where `value` is among the `count` highest, of which `least` is the last.

    With `equals` all that equal it stay, else as many as there is room for.
    """
    if equals:
        return mx.where(value < least, _OUT, x)
    above, equal = value > least, value == least
    place = mx.cumsum(equal.astype(mx.int32))  # from 1, among equals
    return mx.where(above | (equal & (place <= count - above.sum())), x, _OUT)
