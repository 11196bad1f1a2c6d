"""However requests come and go, each gets what it gets alone; how a worker refuses and ends."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import cache as cache_calls
from itertools import islice

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import cache
from engine.errors import InvalidPrompt, InvalidRequest, QueueFull, ShuttingDown
from engine.serving import prefixes, rows
from engine.serving.requests import Done, Request

from ...conftest import ROOT
from .models import SOME, alone, held, prompts_of, read, requests_of, run, tokens, worker_of


@pytest.fixture(scope="module")
def answers(worded_model):
    """`answers(family, variant)` -> what `requests_of(3, 7)` get alone."""

    @cache_calls
    def make(family: str, variant: str) -> list[list[int]]:
        return [alone(worded_model(family, variant), request) for request in requests_of(3, 7)]

    return make


# Any order


@pytest.mark.parametrize(("family", "variant"), SOME)
@settings(max_examples=3)
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

    def off_by_one(self, window=None, padding=None, packing=None):
        init(self, window, padding and [max(0, n - 1) for n in padding], packing)

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


def test_a_full_queue_says_when_to_come_again(worded_model, monkeypatch):
    model = worded_model("llama", "llama3")
    expected = alone(model, Request((1, 2), 5))
    with worker_of(model, max_rows=1, queue=2) as worker, held(monkeypatch) as gate:
        tickets = [worker.submit(Request((1, 2), 5))]
        while worker.status.waiting:  # until it is let in
            pass
        tickets += [worker.submit(Request((1, 2), 5)) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 requests are waiting") as caught:
            worker.submit(Request((1, 2), 5))
        assert 1 <= caught.value.retry_after <= 600
        tickets[2].cancel()
        gate.set()
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


def test_a_program_that_forgets_to_close_ends():
    """In the middle of an answer; a thread that keeps streams of its own would abort it."""
    code = """
from engine.model import load
from engine.serving.worker import Request, Worker
worker = Worker(load("golden/models/tiny-llama"))
print(next(worker.submit(Request((5, 6, 7), 100_000, ignore_eos=True)).events()).token)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip().isdigit()


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
