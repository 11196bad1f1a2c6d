"""A running server as the candidate: `http://HOST:PORT`, with `#MODEL` where it serves several.

It is asked for greedy completions of plain text, by POST /v1/completions as OpenAI, llama.cpp and
mlx_lm.server spell it, or by shimmy's /api/generate. It shows text, tokens, log-probabilities and
counts, and no arrays: the checks completion, text, logprobs, usage and stop judge those. Nothing
it says is believed unseen, and no answer is awaited for ever.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import urlsplit

from engine.errors import one_line

from ..errors import BadCandidate, BadOption
from ..probes import TEXT
from ..tokenizers.sides import Side, server_side
from . import Request

SECONDS = 60.0  # one whole answer may take; the variable overrides it
SECONDS_VARIABLE = "MLX_PARITY_SERVER_SECONDS"
MOST_BYTES = 16 << 20  # of one answer: a thousand times what 64 tokens take

_NO_ARRAYS = "a server shows no arrays"
LIMITS = {
    "environment": "a server does not show what it computes on",
    "weights": "a server does not show its parameters",
    "tokens": "a server does not show the ids of a text; usage asks how many there are",
    "engagement": _NO_ARRAYS,
    "sites": _NO_ARRAYS,
    "blocks": _NO_ARRAYS,
    "logits": _NO_ARRAYS,
    "head": _NO_ARRAYS,
    "distribution": "a server shows probabilities of few tokens; logprobs asks for them",
    "observer": _NO_ARRAYS,
    "greedy": "a server takes text; completion asks it",
    "cache": "a server takes a prompt in one piece",
    "batch": "a server does not show what it puts into a batch",
    "repeat": "a server may use the cache of an earlier request",
}


@dataclass(frozen=True)
class Completion:
    """What a server said to one prompt; None for what it did not say.

    `ids` or `pieces` are the tokens taken, as ids or as texts; `logprobs` are theirs, in nats, from
    the first token on, and `digits` the size of the last digit that each was printed with.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    ids: tuple[int, ...] | None = None
    pieces: tuple[str, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    digits: tuple[float, ...] = ()


@dataclass(frozen=True)
class Route:
    """One way to ask: where, how log-probabilities may be asked for, how the answer is read, and
    what it cannot show."""

    path: str
    logprobs: tuple[int | bool | None, ...]
    read: Callable[[Any], Completion | None]
    limits: Mapping[str, str]


def only_dtype(request: Request) -> str:
    """A server serves at one dtype and does not say which: the user does, with --dtype."""
    return request.dtype


def load(request: Request) -> ServerBackend:
    """Ask the server for one token. Raises BadCandidate where no answer comes, or a strange one."""
    named = os.environ.get(SECONDS_VARIABLE, "")
    try:
        seconds = float(named or SECONDS)
        if not 0 < seconds < math.inf:
            raise ValueError
    except ValueError:
        raise BadOption(f"{SECONDS_VARIABLE}={named!r}: seconds are a number above 0") from None
    return ServerBackend(request.argument, request.dtype, seconds)


class ServerBackend:
    """One server; every question is put to it once. All methods raise BadCandidate."""

    device = "host"

    def __init__(self, url: str, dtype: str, seconds: float = SECONDS) -> None:
        """`seconds` bounds every answer, from the connection to the last byte."""
        self.name, self._named = _address(url)
        self.dtype, self._seconds = dtype, seconds
        self._told: dict[tuple[str, int, str | None], Completion] = {}
        self._route, self._model, self._logprobs = self._meet()
        self.limits: Mapping[str, str] = {**LIMITS, **self._route.limits}

    def complete(self, prompt: str, count: int, stop: str | None = None) -> Completion:
        """At most `count` greedy tokens after a text; the text ends before `stop`."""
        key = prompt, count, stop
        if key not in self._told:
            self._told[key] = self.complete_anew(*key)
        return self._told[key]

    def complete_anew(self, prompt: str, count: int, stop: str | None = None) -> Completion:
        """`complete`, asked even where the answer is known."""
        return self._ask(prompt, count, stop, self._route, self._model, self._logprobs)

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a POST, None where the server does not know the question."""
        try:
            return self._send("POST", path, body | ({"model": self._model} if self._model else {}))
        except _Refused:
            return None

    def side(self) -> Side:
        """Its tokenizer, as far as it shows it."""
        return server_side(self)

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise BadCandidate(f"candidate {self.name}: {_NO_ARRAYS}, and this needs them")

    greedy = forward

    def batch(self, *_: Any) -> None:
        return None

    weights = checkpoint = expected_weights = tokens = locate = batch

    def _meet(self) -> tuple[Route, str | None, int | bool | None]:
        """The first way to ask that is not refused: route, model's name, and how logprobs are
        asked for, which is a number in OpenAI's definition and a boolean in mlx_lm.server."""
        refusals = []
        for model in self._models():
            for route in ROUTES:
                for logprobs in route.logprobs:
                    try:
                        told = self._ask(TEXT, 1, None, route, model, logprobs)
                    except _Refused as refusal:
                        refusals += [refusal] if logprobs is None else []
                        continue
                    if told.logprobs or logprobs is None:
                        return route, model, logprobs
        names = self._listed()
        if len(names) < 2:
            raise refusals[0]
        shown = ", ".join(repr(name)[1:-1] for name in names)[:200]
        raise BadCandidate(f"{refusals[0]}; write {self.name}#MODEL for one of {shown}")

    def _models(self) -> Iterator[str | None]:
        """Names to try: the user's; or none, then the only one that the server lists."""
        yield self._named
        if self._named is None and len(names := self._listed()) == 1:
            yield names[0]

    def _listed(self) -> list[str]:
        """Models that the server lists; none where it cannot."""
        try:
            found = _at(self._send("GET", "/v1/models", None), "data")
        except BadCandidate:
            return []
        names = [_at(each, "id") for each in found] if isinstance(found, list) else []
        return [name for name in names if isinstance(name, str)]

    def _ask(
        self,
        prompt: str,
        count: int,
        stop: str | None,
        route: Route,
        model: str | None,
        logprobs: int | bool | None,
    ) -> Completion:
        known = {"model": model, "logprobs": logprobs, "stop": stop and [stop]}
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, "stream": False}
        answer = self._send("POST", route.path, body | {k: v for k, v in known.items() if v})
        told = route.read(answer)
        if told is None:
            raise BadCandidate(f"{self.name}{route.path} answered without a text: {answer!r:.80}")
        return told

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """One request, as JSON both ways; fractions come as Decimal."""
        import httpx2

        where = self.name + path
        try:
            status, data = _run(_exchange(method, where, body, self._seconds))
        except TimeoutError:
            raise BadCandidate(
                f"{where} did not finish its answer within {self._seconds:g} s: "
                f"{SECONDS_VARIABLE} allows more"
            ) from None
        except httpx2.ConnectError as error:
            raise BadCandidate(
                f"no server answers at {self.name} ({one_line(error)}): start it"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            raise BadCandidate(f"{where} broke off its answer: {one_line(error)}") from None
        if data is None:
            raise BadCandidate(f"{where} answered with more than {MOST_BYTES >> 20} MiB")
        if status != 200:
            error = _Refused if 400 <= status < 500 else BadCandidate
            raise error(f"{where} answered {status}: {_reason(data)}")
        try:
            return json.loads(data, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError):
            raise BadCandidate(f"{where} answered with what is no JSON: {data[:60]!r}") from None


class _Refused(BadCandidate):
    """The server understood, and will not answer this."""


async def _exchange(
    method: str, url: str, body: dict[str, Any] | None, seconds: float
) -> tuple[int, bytes | None]:
    """Status and body, None where that is too long. Raises TimeoutError when `seconds` are over,
    whatever has come by then: a limit on each read alone never ends a server that drips."""
    import httpx2

    # Redirects are not followed, and no proxy stands between this machine and itself.
    parts = urlsplit(url)
    client = httpx2.AsyncClient(
        timeout=None,
        headers={"Accept-Encoding": "identity"},
        trust_env=parts.hostname not in ("localhost", "127.0.0.1", "::1"),
        verify=parts.scheme == "https",  # certificates take 30 ms to read
    )
    data = bytearray()
    async with asyncio.timeout(seconds), client, client.stream(method, url, json=body) as answer:
        async for piece in answer.aiter_raw():
            data += piece
            if len(data) > MOST_BYTES:
                return answer.status_code, None
        return answer.status_code, bytes(data)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, in a thread of its own where a loop already runs (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _address(url: str) -> tuple[str, str | None]:
    """Where /v1 starts, and the model's name behind `#`."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and not parts.query
        _ = parts.port  # raises where it is no number
    except ValueError:
        fine = False
    if not fine:
        raise BadOption(f"candidate {url!r}: write http://HOST:PORT, or http://HOST:PORT#MODEL")
    base, _, model = url.partition("#")
    return base.rstrip("/").removesuffix("/completions").removesuffix("/v1"), model or None


def _openai(answer: Any) -> Completion | None:
    """POST /v1/completions. Tokens stand in `logprobs`: as lists side by side in OpenAI's own
    definition of this route, as a list of entries in that of chats, which llama.cpp and
    mlx_lm.server follow here too."""
    choice, usage = _at(answer, "choices", 0), _at(answer, "usage")
    if not isinstance(text := _at(choice, "text"), str):
        return None
    shown = _at(choice, "logprobs")
    entries = _at(shown, "content")
    if isinstance(entries, list):
        ids = [_at(entry, "id") for entry in entries]
        pieces = [_at(entry, "token") for entry in entries]
        logprobs = [_at(entry, "logprob") for entry in entries]
    else:
        ids, pieces, logprobs = [], _at(shown, "tokens"), _at(shown, "token_logprobs")
    numbers = _numbers(logprobs)
    reason = _at(choice, "finish_reason")
    return Completion(
        text,
        reason if isinstance(reason, str) else None,
        *(_count(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")),
        ids=tuple(ids) if ids and all(type(id) is int for id in ids) else None,
        pieces=_strings(pieces),
        logprobs=tuple(map(float, numbers)) or None,
        digits=_last_digits(numbers),
    )


def _generate(answer: Any) -> Completion | None:
    """shimmy's POST /api/generate: a text, and no more."""
    text = _at(answer, "response")
    return Completion(text) if isinstance(text, str) else None


_NO_COUNTS = "/api/generate does not count tokens or say why it stopped"
ROUTES = (
    Route("/v1/completions", (1, True, None), _openai, {}),
    Route(
        "/api/generate",
        (None,),
        _generate,
        {
            "logprobs": "/api/generate gives no log-probabilities",
            "usage": _NO_COUNTS,
            "stop": _NO_COUNTS,
        },
    ),
)


def _at(value: Any, *path: str | int) -> Any:
    """What stands at a path into JSON; None where nothing does."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def _count(usage: Any, name: str) -> int | None:
    found = _at(usage, name)
    return found if type(found) is int else None


def _strings(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return tuple(value)
    return None


def _numbers(value: Any) -> list[Decimal]:
    """The numbers at the beginning of a list."""
    found = []
    for each in value if isinstance(value, list) else ():
        if type(each) not in (int, float, Decimal):
            break
        found.append(Decimal(each))
    return found


def _last_digits(numbers: Sequence[Decimal]) -> tuple[float, ...]:
    """The size of each number's last digit. Zeros at an end are not printed, so the longest ones
    tell: how many decimals there are, or, in printing of another kind, significant digits."""
    places = {n: (_last(n), n.adjusted()) for n in numbers if n.is_finite() and n}
    if not places:
        return tuple(0.0 for _ in numbers)
    decimals = min(last for last, _ in places.values())
    significant = max(first - last for last, first in places.values())
    found = []
    for number in numbers:
        last, first = places.get(number, (decimals, decimals))
        found.append(10.0 ** min(last, max(decimals, first - significant), 300))
    return tuple(found)


def _last(number: Decimal) -> int:
    """The place of the last digit that is no zero: -2 for 3.1400."""
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int), "asked of finite numbers"
    return exponent


def _reason(data: bytes) -> str:
    """The server's own words in an answer that is none, on one line."""
    try:
        error = _at(json.loads(data), "error")
    except (ValueError, RecursionError):
        error = None
    words = error if isinstance(error, str) else _at(error, "message")
    text = words if isinstance(words, str) else data[:200].decode(errors="replace")
    return repr(" ".join(text.split())[:200])
