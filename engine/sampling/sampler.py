"""The state of one request: what its text has, and its key, which moves on with each token."""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import mlx.core as mx

from ..errors import InvalidRequest
from .filters import FILTERS, added, allowed_only, repeated
from .orders import ORDERS
from .wishes import Sampling

# Of the noise that draws a token. MLX's can be -inf, once in 2**32: every other token would come
# before, those ruled out as well. A true Gumbel variable is never below this.
_LEAST_NOISE = -100.0


class Sampler:
    """Choose the tokens of one request, one a call.

    The token of step n depends on the seed, n and the logits alone, and on the text so far where
    there are penalties; on no global state, and on no other request.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab: int) -> None:
        """`vocab` is the number of logits. Raises InvalidRequest for a bias that cannot be."""
        self.sampling, self._order = sampling, ORDERS[sampling.order]
        self.seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        self._key = mx.random.key(self.seed)
        self._bias = _bias(sampling, vocab)
        self._text = _Counted(prompt, self._order.window)
        self._answer = _Counted((), None) if self._order.answer_only else self._text

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        """Logits (V,) -> a token (), lazily; `allowed`, (V,) booleans, rules out the others."""
        scores = self.scores(logits, allowed)
        if self.sampling.temperature > 0:
            self._key, now = mx.random.split(self._key)
            # The argmax with Gumbel noise is a draw from the softmax.
            scores = scores + mx.maximum(mx.random.gumbel(scores.shape, key=now), _LEAST_NOISE)
        return mx.argmax(scores)

    def scores(self, logits: mx.array, allowed: mx.array | None = None) -> mx.array:
        """Logits (V,) -> (V,) float32, whose softmax the next token is drawn from.

        At temperature 0 the token is their argmax.
        """
        x = logits.astype(mx.float32)
        if self._bias is not None:
            x = added(x, *self._bias)
        x = self._penalised(x)
        if allowed is not None:
            x = allowed_only(x, allowed)
        if self.sampling.temperature > 0:
            for step in self._order.steps:
                x = FILTERS[step](x, self.sampling, self._order)
        return x

    def took(self, token: int) -> None:
        """The text now has this token: penalties count it."""
        self._text.add(token)
        if self._answer is not self._text:
            self._answer.add(token)

    def _penalised(self, x: mx.array) -> mx.array:
        wish = self.sampling
        if wish.repetition_penalty != 1 and self._text.times:
            x = repeated(x, mx.array(list(self._text.times)), wish.repetition_penalty)
        if (wish.presence_penalty or wish.frequency_penalty) and self._answer.times:
            tokens, times = map(mx.array, zip(*self._answer.times.items(), strict=True))
            x = added(x, tokens, -(wish.presence_penalty + wish.frequency_penalty * times))
        return x


def logprobs(logits: mx.array) -> mx.array:
    """(..., V) -> (..., V) float32: the log softmax of the model's own logits."""
    x = logits.astype(mx.float32)
    return x - mx.logsumexp(x, axis=-1, keepdims=True)


def best(logprobs: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """(V,) -> the ids and values, (count,) each, of the highest, highest first."""
    ids = mx.argsort(-logprobs)[:count]
    return ids, logprobs[ids]


class _Counted:
    """How many times each token is among the last ones."""

    def __init__(self, tokens: Iterable[int], window: int | None) -> None:
        self._last: deque[int] = deque(maxlen=window)
        self.times: Counter[int] = Counter()
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        if len(self._last) == self._last.maxlen:
            oldest = self._last[0]
            self.times[oldest] -= 1
            if not self.times[oldest]:
                del self.times[oldest]
        self._last.append(token)
        self.times[token] += 1


def _bias(sampling: Sampling, vocab: int) -> tuple[mx.array, mx.array] | None:
    """Token ids and what is added to their logits."""
    bias = sampling.logit_bias
    if not bias:
        return None
    if max(bias) >= vocab:
        raise InvalidRequest(
            f"logit_bias names token {max(bias)}: the vocabulary has {vocab}, the last is "
            f"{vocab - 1}"
        )
    if len(bias) == vocab and max(bias.values()) == -float("inf"):
        raise InvalidRequest("logit_bias bans every token: leave at least one")
    return mx.array(list(bias)), mx.array(list(bias.values()), mx.float32)
