"""Workers of several ranks that take the same turns: rank 0 tells the others what came in.

Only rank 0 has clients. Before each turn it tells which requests are new and which were given up;
all workers then do the same with the same, since a turn depends on nothing else. While there is
nothing to do a word is passed now and then, so that a rank that is gone is missed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..ranks import Ranks
from ..sampling.wishes import Sampling
from .requests import Request

if TYPE_CHECKING:
    from ..model import Model

IDLE = 0.05  # seconds between two words while there is nothing to do


@dataclass(frozen=True)
class News:
    """What a turn begins with: new requests, the numbers of those given up, whether it is over.

    Requests are numbered as they come. `check` is of all tokens made so far.
    """

    new: Sequence[Request] = ()
    gone: Sequence[int] = ()
    over: bool = False
    check: int = 0


class Lockstep:
    """One rank's end of it."""

    def __init__(self, ranks: Ranks, model: Model) -> None:
        """All ranks wait here for each other."""
        self.leads, self.lost = ranks.rank == 0, ranks.lost
        self._ranks, self._model = ranks, model
        heads = sum(block.attention.kv_heads for block in model.decoder.spec.blocks)
        # Else they would fill the same room with other numbers of tokens, and forget others.
        self.same_caches = len(set(ranks.numbers(heads))) == 1
        ranks.watch()

    def tell(self, news: News) -> None:
        """On rank 0: have the others begin the same turn."""
        self._ranks.told(_text(news))

    def hear(self, busy: bool) -> News:
        """On any other rank: what the turn begins with. Waits for it."""
        if not busy:
            time.sleep(IDLE)  # what waits in a collective keeps a core busy
        return self._news(self._ranks.told())

    def ended(self) -> None:
        """The worker could not go on, and so can no other rank's: have the server end."""
        if self.leads:
            os.kill(os.getpid(), signal.SIGTERM)

    def _news(self, text: str) -> News:
        raw = json.loads(text)
        new = [self._request(each) for each in raw["new"]]
        return News(new, raw["gone"], raw["over"], raw["check"])

    def _request(self, raw: dict[str, Any]) -> Request:
        wish, grammar = raw["sampling"], raw["constraint"]
        wish["logit_bias"] = {int(token): bias for token, bias in wish["logit_bias"].items()}
        return Request(
            prompt=tuple(raw["prompt"]),
            max_tokens=raw["max_tokens"],
            sampling=Sampling(**wish),
            stop=tuple(raw["stop"]),
            stop_tokens=frozenset(raw["stop_tokens"]),
            ignore_eos=raw["ignore_eos"],
            logprobs=raw["logprobs"],
            constraint=grammar and self._constraint(*grammar),
            skip_special=raw["skip_special"],
        )

    def _constraint(self, grammar: str, what: str) -> Any:
        from ..constraint import Constraint

        return Constraint(grammar, self._model.tokenizer, self._model.spec.vocab, what)


def seeded(request: Request, seed: int) -> Request:
    """The same request with a seed, so that all ranks draw the same tokens."""
    if request.sampling.seed is not None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=seed))


def _text(news: News) -> str:
    return json.dumps(
        {
            "new": [_raw(request) for request in news.new],
            "gone": list(news.gone),
            "over": news.over,
            "check": news.check,
        }
    )


def _raw(request: Request) -> dict[str, Any]:
    constraint = request.constraint
    return {
        **{name: getattr(request, name) for name in request.__dataclass_fields__},
        "sampling": asdict(request.sampling),
        "stop_tokens": sorted(request.stop_tokens),
        "constraint": constraint and [constraint.grammar, constraint.what],
    }
