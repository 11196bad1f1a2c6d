"""However requests come and go, each gets what it gets alone."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import replace
from functools import cache as cache_calls
from itertools import islice

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import cache
from engine.errors import InvalidPrompt, InvalidRequest, QueueFull, ShuttingDown
from engine.sampling import Sampling
from engine.serving import prefixes, rows
from engine.serving.requests import Done, Piece, Request
from engine.serving.worker import Worker
from harness.random_models import variants

from .models import alone, read, tokens, worded

# Windows, latent attention, experts, sinks, positions that are learned, scaled and of each length.
SOME = [
    ("llama", "llama3"),
    ("mistral", "window"),
    ("gemma3_text", "local-global"),
    ("deepseek_v3", "yarn"),
    ("gpt_oss", "yarn"),
    ("gpt2", "plain"),
    ("llama", "dynamic"),
    ("phi3", "longrope"),
]
CHUNK = 16


@pytest.fixture(scope="module")
def worded_model(random_model):
    """`worded_model(family, variant)` -> a small random model whose ids are words, made once."""
    return cache_calls(lambda family, variant: worded(random_model(family, variant)))


@pytest.fixture(scope="module")
def answers(worded_model):
    """`answers(family, variant)` -> what `requests_of(3, 7)` get alone."""

    @cache_calls
    def make(family: str, variant: str) -> list[list[int]]:
        return [alone(worded_model(family, variant), request) for request in requests_of(3, 7)]

    return make


def prompts_of(seed: int, count: int, longest: int = 80) -> list[tuple[int, ...]]:
    """Random prompts, some of which begin alike, or with all of another."""
    chance = random.Random(seed)
    known = [tuple(chance.randrange(131) for _ in range(longest)) for _ in range(2)]
    found = []
    for _ in range(count):
        shared = chance.choice([*known, *found])[: chance.choice([0, CHUNK, longest])]
        fresh = tuple(chance.randrange(131) for _ in range(chance.randint(1, 20)))
        found.append((shared + fresh)[:longest])
    return found


def requests_of(seed: int, count: int, longest: int = 80) -> list[Request]:
    chance = random.Random(seed)
    return [Request(p, chance.randint(1, 30)) for p in prompts_of(seed, count, longest)]


def worker_of(model, **more) -> Worker:
    return Worker(model, **{"max_rows": 4, "prefill_chunk": CHUNK, **more})


# Every family


@pytest.mark.parametrize(("family", "variant"), variants())
def test_requests_get_what_they_get_alone(worded_model, family, variant):
    """Of any lengths, beside others, with prefixes that others left, and once more."""
    model = worded_model(family, variant)
    requests = requests_of(len(family + variant), 4, longest=70)
    expected = [alone(model, request) for request in requests]
    for deterministic in (False, True):
        with worker_of(model, max_rows=3, deterministic=deterministic) as worker:
            together = [worker.submit(request) for request in requests]
            assert [tokens(ticket) for ticket in together] == expected
            pieces, done = read(worker.submit(requests[-1]))
        assert [piece.token for piece in pieces] == expected[-1]
        known = len(requests[-1].prompt) - 1
        assert done.cached_tokens == (known - known % CHUNK if deterministic else known)


# Any order


@pytest.mark.parametrize(("family", "variant"), SOME)
@settings(max_examples=5)
@given(data=st.data())
def test_any_schedule(worded_model, answers, family, variant, data):
    """Requests that come while others are read, in part or not at all, and that are cancelled."""
    model = worded_model(family, variant)
    requests = requests_of(3, 7)
    expected = answers(family, variant)
    deterministic = data.draw(st.booleans())
    order = data.draw(st.permutations(range(len(requests))))
    bytes_kept = data.draw(st.sampled_from([0, 40_000, 1 << 30]))
    with worker_of(model, deterministic=deterministic, prefix_cache_bytes=bytes_kept) as worker:
        tickets, got, cancelled = {}, {n: [] for n in order}, set()
        for n in order:
            tickets[n] = worker.submit(requests[n])
            reader = data.draw(st.sampled_from(sorted(tickets)))
            wanted = data.draw(st.integers(0, 5))
            for event in islice(tickets[reader].events(), wanted):
                if not isinstance(event, Done):
                    got[reader].append(event)
            if data.draw(st.integers(0, 4)) == 0:
                tickets[reader].cancel()
                cancelled.add(reader)
        for n in order:
            *pieces, done = [*got[n], *tickets[n].events()]
            taken = [piece.token for piece in pieces]
            if done.reason == "cancelled":
                assert n in cancelled and taken == expected[n][: len(taken)]
            else:
                assert (taken, done.reason) == (expected[n], "length")
        assert (worker.status.running, worker.status.row_bytes) == (0, 0)
        assert worker.status.cache_bytes <= bytes_kept


def test_rows_whose_padding_is_off_by_one_are_noticed(worded_model, monkeypatch):
    """Negative control: the comparison above has teeth."""
    model = worded_model("llama", "llama3")
    requests = requests_of(1, 6)
    expected = [alone(model, request) for request in requests]
    assert run(model, requests) == expected
    init = cache.Cache.__init__

    def off_by_one(self, window=None, padding=None):
        init(self, window, padding and [max(0, n - 1) for n in padding])

    monkeypatch.setattr(cache.Cache, "__init__", off_by_one)
    assert run(model, requests) != expected


def test_a_prefix_of_somebody_else_is_noticed(worded_model, monkeypatch):
    """Negative control: keys and values of other tokens show in the answer."""
    model = worded_model("llama", "llama3")
    one, other = prompts_of(0, 2)
    requests = [Request((*one, 5), 20), Request((*other, 5), 20)]
    expected = [alone(model, request) for request in requests]
    assert run(model, requests) == expected
    monkeypatch.setattr(prefixes, "_common", lambda known, tokens, start: min(len(known), 8))
    monkeypatch.setattr(
        prefixes.Prefixes,
        "_walk",
        lambda self, tokens, length: (
            ([first], min(8, len(tokens)))
            if (root := self._roots.get(self._era(length)))
            and (first := next(iter(root.children.values()), None))
            else ([], 0)
        ),
    )
    assert run(model, requests) != expected


def test_keys_of_the_short_factors_are_noticed(worded_model, monkeypatch):
    """Negative control: a sequence that outgrows LongRoPE's short factors is fed again."""
    model = worded_model("phi3", "longrope")
    requests = [Request(prompt[:50], 40) for prompt in prompts_of(3, 4)]
    expected = [alone(model, request) for request in requests]
    assert run(model, requests) == expected
    monkeypatch.setattr(rows, "edges", lambda spec: set())
    assert run(model, requests) != expected


def run(model, requests, **more) -> list[list[int]]:
    """The tokens of requests each of which comes when the one before it decodes."""
    with worker_of(model, **more) as worker:
        streams, first = [], []
        for request in requests:
            streams.append(worker.submit(request).events())
            first.append(next(streams[-1]))
        events = ([one, *rest] for one, rest in zip(first, streams, strict=True))
        return [[event.token for event in each[:-1]] for each in events]


# Deterministic mode


@pytest.mark.parametrize(("family", "variant"), SOME)
def test_bits_do_not_depend_on_the_others(worded_model, family, variant):
    """Tokens and log-probabilities alone, together, in another order and after a restart."""
    model = worded_model(family, variant)
    requests = [replace(request, logprobs=3) for request in requests_of(5, 6)]
    requests[1::2] = [
        replace(request, sampling=Sampling(temperature=1.0, seed=7)) for request in requests[1::2]
    ]
    seen = []
    for order in ([0, 1, 2, 3, 4, 5], [4, 2, 5, 0, 3, 1]):
        with worker_of(model, deterministic=True) as worker:
            tickets = {n: worker.submit(requests[n]) for n in order}
            seen.append([list(tickets[n].events())[:-1] for n in range(6)])
    with worker_of(model, deterministic=True) as worker:
        seen.append([list(worker.submit(request).events())[:-1] for request in requests])
    assert seen[0] == seen[1] == seen[2]


def test_every_step_has_the_same_rows(worded_model, monkeypatch):
    """What a GPU's kernels are chosen by: however many decode, and with no padding."""
    model = worded_model("gpt_oss", "yarn")
    shapes, call = set(), type(model.decoder).__call__

    def noted(self, tokens, cache, **more):
        if isinstance(cache[0], prefixes.Cache):
            assert cache[0].padding is None and len(tokens) == 1
        else:
            shapes.add(tokens.shape)
        return call(self, tokens, cache, **more)

    monkeypatch.setattr(type(model.decoder), "__call__", noted)
    run(model, requests_of(2, 6), deterministic=True)
    assert shapes == {(4, 1)}


# Prompts


def test_a_long_prompt_does_not_stop_the_others(worded_model):
    """Its chunks are fed between their steps."""
    model = worded_model("llama", "llama3")
    with worker_of(model) as worker:
        short = worker.submit(Request((1, 2, 3), 200))
        reading = short.events()
        next(reading)
        long = worker.submit(Request(tuple(range(100)) * 4, 2))  # 25 chunks
        first = next(iter(long.events()))
        assert isinstance(first, Piece)
        assert len(short._events) >= 20, "as many steps as chunks, but for those of the beginning"
        short.cancel()


def test_a_short_prompt_does_not_wait_for_a_long_one(worded_model, monkeypatch):
    model = worded_model("llama", "llama3")
    with held(monkeypatch), worker_of(model) as worker:
        long = worker.submit(Request(tuple(range(100)) * 4, 1))
        short = worker.submit(Request((1, 2, 3), 1))
        release(monkeypatch)
        read(short)
        assert not long._events
        read(long)


def test_requests_of_one_beginning_compute_it_once(worded_model):
    model = worded_model("llama", "llama3")
    shared = tuple(range(100))
    requests = [Request((*shared, n), 3) for n in range(4)]
    with worker_of(model) as worker:
        done = [read(ticket)[1] for ticket in [worker.submit(request) for request in requests]]
        computed = sum(d.prompt_tokens - d.cached_tokens for d in done)
    assert computed < 2 * len(shared)


def test_the_next_turn_of_a_conversation_is_known(worded_model):
    """Prompt and answer, but for the last token, which was never fed or is fed again."""
    model = worded_model("llama", "llama3")
    with worker_of(model) as worker:
        first = Request((5, 6, 7, 8), 10)
        answer = tokens(worker.submit(first))
        prompt = (*first.prompt, *answer, 9, 10, 11)
        pieces, done = read(worker.submit(Request(prompt, 10)))
        assert done.cached_tokens >= len(first.prompt) + len(answer) - 1
        assert [p.token for p in pieces] == alone(model, Request(prompt, 10))


# Ends


def test_learned_positions_end_it(worded_model):
    model = worded_model("gpt2", "plain")
    room = model.spec.learned_positions
    requests = [Request((1,) * (room - n), 50) for n in (0, 1, 5)] + [Request((3, 4), 20)]
    with worker_of(model) as worker:
        ended = [read(ticket) for ticket in [worker.submit(r) for r in requests]]
    assert [done.reason for _, done in ended] == ["length"] * 4
    assert [[p.token for p in pieces] for pieces, _ in ended] == [alone(model, r) for r in requests]
    assert [len(pieces) for pieces, _ in ended] == [1, 2, 6, 20]


def test_stop_tokens_and_the_tokenizers_own(worded_model, monkeypatch):
    model = worded_model("llama", "llama3")
    free = alone(model, Request((5, 17, 3), 12))
    third = 2
    with worker_of(model) as worker:
        for request in (
            Request((5, 17, 3), 12, stop_tokens=frozenset({free[2]})),
            Request((5, 17, 3), 12),
        ):
            monkeypatch.setattr(type(model.tokenizer), "eos_ids", frozenset({free[2]}))
            pieces, done = read(worker.submit(request))
            assert [piece.token for piece in pieces] == free[: third + 1]
            assert (done.reason, done.stopped_by, pieces[-1].text) == ("stop", free[2], "")
        ignored = Request((5, 17, 3), 12, ignore_eos=True)
        assert tokens(worker.submit(ignored)) == free


def test_a_stop_string_across_tokens(worded_model):
    """Text that may be its beginning is held back, and never given out once it was."""
    model = worded_model("llama", "llama3")
    free = alone(model, Request((5, 17, 3), 12))
    text = "".join(f"{token} " for token in free)
    stop = f"{free[3]} {free[4]} "
    with worker_of(model) as worker:
        pieces, done = read(worker.submit(Request((5, 17, 3), 12, stop=(stop, "never"))))
        assert "".join(piece.text for piece in pieces) + done.text == text[: text.index(stop)]
        assert (done.reason, done.stopped_by, len(pieces)) == ("stop", stop, 5)
        pieces, done = read(worker.submit(Request((5, 17, 3), 12, stop=(text + "never",))))
        assert [piece.text for piece in pieces] == [""] * 12 and done.text == text
        assert done.reason == "length"


def test_log_probabilities(worded_model):
    """Those of the model's own logits, whatever the sampling; the best ones first."""
    model = worded_model("llama", "llama3")
    request = Request((5, 17, 3), 6, Sampling(temperature=2.0, seed=3), logprobs=4)
    with worker_of(model) as worker:
        beside = worker.submit(Request((9, 9), 30))
        pieces, _ = read(worker.submit(request))
        read(beside)
    known = list(request.prompt)
    for piece in pieces:
        logits = model.decoder(mx.array([known]))[0, -1]
        logs = logits - mx.logsumexp(logits)
        assert piece.logprob == pytest.approx(logs[piece.token].item(), abs=1e-4)
        ids = mx.argsort(-logs)[:4].tolist()
        assert [token for token, _ in piece.best] == ids
        assert [p for _, p in piece.best] == pytest.approx([logs[i].item() for i in ids], abs=1e-4)
        known.append(piece.token)


def test_a_seed_is_all_that_a_draw_depends_on(worded_model):
    model = worded_model("llama", "llama3")
    drawn = Request((5, 17, 3), 20, Sampling(temperature=1.5, seed=11))
    punished = replace(drawn, sampling=Sampling(temperature=1.0, seed=2, frequency_penalty=1.5))
    with worker_of(model, prefix_cache_bytes=0) as worker:
        by_themselves = [tokens(worker.submit(request)) for request in (drawn, punished)]
        tickets = [worker.submit(r) for r in (Request((1,), 30), drawn, punished, Request((2,), 9))]
        assert [tokens(ticket) for ticket in tickets][1:3] == by_themselves
        other = replace(drawn, sampling=Sampling(temperature=1.5, seed=12))
        assert tokens(worker.submit(other)) != by_themselves[0]


class Countdown:
    """A constraint that allows one token a step, and is done after some; `breaks` at one."""

    def __init__(self, allowed, breaks=None):
        self.left, self.breaks, self.done = list(allowed), breaks, False

    def allowed(self):
        if self.breaks == self.left[0]:
            raise ValueError("the grammar has\nno way on")
        return mx.arange(131) == self.left[0]

    def took(self, token):
        assert token == self.left.pop(0)
        self.done = not self.left


def test_a_constraint_is_obeyed_and_ends_it(worded_model):
    model = worded_model("llama", "llama3")
    free = alone(model, Request((7, 8), 25))
    with worker_of(model) as worker:
        beside = worker.submit(Request((7, 8), 25))
        pieces, done = read(worker.submit(Request((5,), 25, constraint=Countdown([9, 4, 77]))))
        assert [piece.token for piece in pieces] == [9, 4, 77]
        assert (done.reason, done.stopped_by) == ("stop", None)
        assert tokens(beside) == free


@pytest.mark.parametrize("breaks", [9, 4])
def test_an_error_of_one_request_ends_it_alone(worded_model, breaks):
    """In its first token or a later one."""
    model = worded_model("llama", "llama3")
    free = alone(model, Request((7, 8), 25))
    with worker_of(model) as worker:
        beside = worker.submit(Request((7, 8), 25))
        broken = Request((5,), 25, constraint=Countdown([9, 4, 77], breaks))
        pieces, done = read(worker.submit(broken))
        assert [piece.token for piece in pieces] == [9][: breaks == 4]
        assert (done.reason, done.error) == ("error", "the grammar has no way on")
        too_far = Request((5,), 3, Sampling(logit_bias={500: 1.0}))
        assert "500" in (read(worker.submit(too_far))[1].error or "")
        assert tokens(beside) == free
        assert worker.status.failed == 2


# What cannot be, and limits


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Request((), 1), InvalidPrompt, "no tokens"),
        (Request((3, 131), 1), InvalidPrompt, "token id 131"),
        (Request((1,) * 257, 1), InvalidPrompt, "257"),
        (Request((1,) * 33, 1), InvalidRequest, "33"),
        (Request((1,), 0), InvalidRequest, "max_tokens is 0"),
        (Request((1,), 51), InvalidRequest, "at most 50"),
        (Request((1,), 1, logprobs=132), InvalidRequest, "logprobs is 132"),
        (Request((1,), 1, logprobs=-1), InvalidRequest, "logprobs -1"),
    ],
)
def test_impossible_requests_are_one_line(worded_model, request_, error, words):
    model = worded_model("gpt2", "plain")
    with worker_of(model, max_prompt_tokens=32, max_tokens=50) as worker:
        with pytest.raises(error) as caught:
            worker.submit(request_)
        assert words in str(caught.value) and "\n" not in str(caught.value)
        assert worker.status.requests == 0


class held:
    """While it is entered, no model computes."""

    gate: threading.Event

    def __init__(self, monkeypatch):
        from engine.decoder import Decoder

        held.gate, call = threading.Event(), Decoder.__call__

        def waiting(self, *args, **more):
            held.gate.wait()
            return call(self, *args, **more)

        monkeypatch.setattr(Decoder, "__call__", waiting)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        held.gate.set()


def release(monkeypatch):
    held.gate.set()


def test_a_full_queue_says_when_to_come_again(worded_model, monkeypatch):
    model = worded_model("llama", "llama3")
    expected = alone(model, Request((1, 2), 5))
    with held(monkeypatch), worker_of(model, max_rows=1, queue=2) as worker:
        tickets = [worker.submit(Request((1, 2), 5))]
        while worker.status.waiting:  # until it is let in
            pass
        tickets += [worker.submit(Request((1, 2), 5)) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests are waiting") as caught:
            worker.submit(Request((1, 2), 5))
        assert 1 <= caught.value.retry_after <= 600
        tickets[2].cancel()
        release(monkeypatch)
        assert [tokens(ticket) for ticket in tickets[:2]] == [expected] * 2
        assert read(tickets[2])[1].reason == "cancelled"
        assert tokens(worker.submit(Request((1, 2), 5))) == expected


# Cancelling


@pytest.mark.parametrize("when", ["waiting", "prefill", "decoding"])
def test_cancelling_frees_the_row(worded_model, when):
    model = worded_model("llama", "llama3")
    with worker_of(model, max_rows=1) as worker:
        first = worker.submit(Request(tuple(range(100)) * (20 if when == "prefill" else 1), 5000))
        if when == "waiting":
            blocked, first = first, worker.submit(Request((5,), 9))
        events = first.events()
        if when == "decoding":
            next(events)
        first.cancel()
        *pieces, done = events
        assert (done.reason, done.text) == ("cancelled", "")
        assert when == "decoding" or not pieces
        if when == "waiting":
            blocked.cancel()
        assert tokens(worker.submit(Request((1, 2), 5))) == alone(model, Request((1, 2), 5))
        assert worker.status.cancelled == 1 + (when == "waiting")
        first.cancel()  # once more does nothing


def test_what_a_cancelled_prompt_had_computed_is_right(worded_model):
    model = worded_model("mistral", "window")
    prompt = tuple(range(100)) * 10
    with worker_of(model) as worker:
        ticket = worker.submit(Request(prompt, 10))
        while not worker.status.cache_bytes:
            pass
        ticket.cancel()
        assert read(ticket)[1].reason == "cancelled"
        pieces, done = read(worker.submit(Request(prompt[:300], 10)))
    assert done.cached_tokens > 0
    assert [piece.token for piece in pieces] == alone(model, Request(prompt[:300], 10))


# Readers


def test_a_slow_reader_stops_nobody(worded_model):
    """Its ticket holds what was made, at most one event a token and the end."""
    model = worded_model("llama", "llama3")
    with worker_of(model) as worker:
        slow = worker.submit(Request((4, 5), 30))
        for _ in range(3):
            assert tokens(worker.submit(Request((1, 2), 40))) == alone(model, Request((1, 2), 40))
        assert len(slow._events) == 31
        assert tokens(slow) == alone(model, Request((4, 5), 30))


def test_the_end_can_be_read_again(worded_model):
    with worker_of(worded_model("llama", "llama3")) as worker:
        ticket = worker.submit(Request((4, 5), 3))
        _, done = read(ticket)
        assert list(ticket.events()) == [done]


def test_an_event_loop_is_never_blocked(worded_model):
    model = worded_model("llama", "llama3")
    requests = requests_of(4, 5)

    async def collect(ticket):
        return [event async for event in ticket.aevents()]

    async def main(worker):
        beats, done = 0, False

        async def beat():
            nonlocal beats
            while not done:
                beats += 1
                await asyncio.sleep(0)

        heart = asyncio.ensure_future(beat())
        found = await asyncio.gather(*(collect(worker.submit(r)) for r in requests))
        done = True
        await heart
        return found, beats

    with worker_of(model) as worker:
        found, beats = asyncio.run(main(worker))
    assert [[e.token for e in events[:-1]] for events in found] == [
        alone(model, r) for r in requests
    ]
    assert beats > 10


def test_a_loop_that_is_gone_harms_nobody(worded_model):
    model = worded_model("llama", "llama3")

    async def first(ticket):
        async for event in ticket.aevents():
            return event

    with worker_of(model) as worker:
        ticket = worker.submit(Request((1, 2), 60))
        assert isinstance(asyncio.run(first(ticket)), Piece)
        assert tokens(worker.submit(Request((1, 2), 5))) == alone(model, Request((1, 2), 5))


# The end of a worker


def test_closing_finishes_what_was_taken(worded_model):
    model = worded_model("llama", "llama3")
    requests = requests_of(6, 9)
    worker = worker_of(model, max_rows=2)
    tickets = [worker.submit(request) for request in requests]
    worker.close()
    with pytest.raises(ShuttingDown):
        worker.submit(requests[0])
    assert [tokens(ticket) for ticket in tickets] == [alone(model, r) for r in requests]
    assert worker.status.closing
    worker.close()


@pytest.mark.parametrize("how", [{"finish": False}, {"seconds": 0.01}])
def test_closing_at_once_cancels(worded_model, how):
    worker = worker_of(worded_model("llama", "llama3"), max_rows=2)
    tickets = [worker.submit(Request((n,), 100_000)) for n in range(5)]
    worker.close(**how)
    assert [read(ticket)[1].reason for ticket in tickets] == ["cancelled"] * 5


class Broken:
    """A decoder that fails from its nth call on, `times` times."""

    def __init__(self, monkeypatch, nth, times):
        from engine.decoder import Decoder

        call, self.calls = Decoder.__call__, 0

        def failing(decoder, *args, **more):
            self.calls += 1
            if nth <= self.calls < nth + times:
                raise RuntimeError("[metal] out of\nmemory")
            return call(decoder, *args, **more)

        monkeypatch.setattr(Decoder, "__call__", failing)


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_a_failure_of_mlx_ends_what_runs_and_no_more(worded_model, monkeypatch, nth):
    model = worded_model("llama", "llama3")
    expected = alone(model, Request((1, 2), 20))
    with worker_of(model) as worker:
        Broken(monkeypatch, nth, 1)
        _, done = read(worker.submit(Request((1, 2), 20)))
        assert (done.reason, done.error) == (
            "error",
            "the model could not be run: [metal] out of memory",
        )
        assert tokens(worker.submit(Request((1, 2), 20))) == expected
        assert worker.status.dead is None and worker.status.failed == 1


def test_mlx_that_always_fails_is_the_end(worded_model, monkeypatch):
    with worker_of(worded_model("llama", "llama3"), max_rows=1) as worker:
        Broken(monkeypatch, 1, 1000)
        ended = [read(ticket)[1] for ticket in [worker.submit(Request((n,), 5)) for n in range(5)]]
        assert [done.reason for done in ended] == ["error"] * 5
        while worker.status.dead is None:  # until it has noticed
            pass
        with pytest.raises(ShuttingDown, match="MLX failed 3 times"):
            worker.submit(Request((1,), 5))


# Memory and figures


def test_memory_is_flat(worded_model):
    """What is held after many requests is what was held after few."""
    model = worded_model("gemma3_text", "local-global")
    chance = random.Random(0)
    with worker_of(model, prefix_cache_bytes=200_000) as worker:
        held_bytes = []
        for _ in range(6):
            tickets = [
                worker.submit(Request(tuple(chance.randrange(131) for _ in range(40)), 10))
                for _ in range(15)
            ]
            for n, ticket in enumerate(tickets):
                if n % 4 == 0:
                    ticket.cancel()
                read(ticket)
            assert worker.status.cache_bytes <= 200_000
            assert worker.status.row_bytes == 0
            held_bytes.append(mx.get_active_memory())
    assert max(held_bytes[2:]) < held_bytes[1] + 200_000


def test_figures(worded_model):
    model = worded_model("llama", "llama3")
    with worker_of(model, max_rows=3, queue=9) as worker:
        read(worker.submit(Request((1, 2, 3), 4)))
        read(worker.submit(Request((1, 2, 3), 4)))
        status = worker.status
    assert (status.rows, status.queue, status.waiting, status.running) == (3, 9, 0, 0)
    assert (status.requests, status.prompt_tokens, status.generated_tokens) == (2, 6, 8)
    assert (status.cached_tokens, status.cache_hits, status.cache_misses) == (2, 1, 1)
    assert status.tokens_per_second == 8 / 5
    assert status.peak_memory > 0 and status.cache_bytes > 0
