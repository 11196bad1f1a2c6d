"""What a request may wish for, checked when it is said. Nothing here touches an array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import InvalidRequest
from .orders import ORDERS

_FAR = 1e9  # further than any wish need go; sums and products of such are finite in float32
# What each number may be: its kind, the least and the most, whether the least itself is one, and
# all that in words.
_RANGES = {
    "temperature": (float, 0, _FAR, True, "a number from 0, which is greedy, to 1e9"),
    "top_k": (int, 0, 2**31 - 1, True, "a whole number from 0, which is off"),
    "top_p": (float, 0, 1, False, "a number above 0 and up to 1, which is off"),
    "min_p": (float, 0, 1, True, "a number from 0, which is off, to 1"),
    "typical_p": (float, 0, 1, False, "a number above 0 and up to 1, which is off"),
    "repetition_penalty": (float, 1 / _FAR, _FAR, True, "a number from 1e-9 to 1e9; 1 is off"),
    "presence_penalty": (float, -_FAR, _FAR, True, "a number from -1e9 to 1e9; 0 is off"),
    "frequency_penalty": (float, -_FAR, _FAR, True, "a number from -1e9 to 1e9; 0 is off"),
    "seed": (int, 0, 2**64 - 1, True, "a whole number from 0 to 2**64 - 1"),
}


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen; the defaults are greedy and leave logits alone.

    `temperature` 0 takes the best token after bias and penalties, whatever the filters. `top_k` 0,
    `top_p` 1, `min_p` 0 and `typical_p` 1 are off, as are a `repetition_penalty` of 1 and the other
    penalties at 0. `logit_bias` is added to the logits of token ids; -inf bans one. Without a
    `seed` every request has its own. `order` is a name in ORDERS. Raises InvalidRequest.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    order: str = "transformers"

    def __post_init__(self) -> None:
        for name, (kind, least, most, closed, words) in _RANGES.items():
            value = getattr(self, name)
            if name == "seed" and value is None:
                continue
            if (
                not _is(value, kind)
                or not least <= value <= most
                or (value == least and not closed)
            ):
                raise InvalidRequest(f"{name} is {value!r:.40}: give {words}")
        if self.order not in ORDERS:
            raise InvalidRequest(f"order {self.order!r:.40} is not one of {', '.join(ORDERS)}")
        for token, bias in self.logit_bias.items():
            if not _is(token, int) or token < 0:
                raise InvalidRequest(f"logit_bias has {token!r:.40}: give token ids from 0")
            if not _is(bias, float) or not (-_FAR <= bias <= _FAR or bias == -math.inf):
                raise InvalidRequest(
                    f"logit_bias of token {token} is {bias!r:.40}: give a number from -1e9 to 1e9, "
                    "or -inf to ban it"
                )
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))  # the caller's may change

    @property
    def penalised(self) -> bool:
        """Whether a token depends on those before it by more than the logits."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)

    @property
    def plain_greedy(self) -> bool:
        """Whether the token is the argmax of the model's own logits."""
        return self.temperature == 0 and not self.penalised and not self.logit_bias


def _is(value: object, kind: type) -> bool:
    """Whether a value is a number of that kind; True is none, and whole numbers are numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        return False
    return not (isinstance(value, float) and math.isnan(value))
