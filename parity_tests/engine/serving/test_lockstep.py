"""Workers in lockstep: the same turns on every rank, whatever clients do on rank 0."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.constraint import Constraint
from engine.errors import RankLost
from engine.model import load
from engine.sampling.wishes import Sampling
from engine.serving.lockstep import Lockstep, News, seeded
from engine.serving.worker import Done, Request, Worker

SECONDS = 60.0


class FakeRanks:
    """Two ranks of one process that only talk; what is computed is whole on both."""

    size = 2

    def __init__(self, rank: int, said: queue.Queue) -> None:
        self.rank, self._said = rank, said

    def numbers(self, mine: int) -> list[int]:
        return [mine, mine]

    def told(self, text: str | None = None) -> str:
        if self.rank == 0:
            self._said.put(text)
            return text or ""
        found = self._said.get(timeout=SECONDS)
        if found is None:
            raise RuntimeError("[ring] connection to a peer was lost")
        return found

    def lost(self, cause: BaseException) -> RankLost | None:
        return RankLost(f"lost ({cause})") if str(cause).startswith("[ring]") else None

    def watch(self) -> None:
        """Nobody is gone here."""


@pytest.fixture
def pair(tiny_llama):
    """`pair(**options)` -> the workers of rank 0 and rank 1, and what passes between them."""
    made = []

    def make(change=lambda follower: None, **options):
        said: queue.Queue = queue.Queue()
        workers = []
        for rank in (0, 1):
            model = load(tiny_llama)
            if rank:
                change(model)
            step = Lockstep(FakeRanks(rank, said), model)  # type: ignore[arg-type]
            workers.append(Worker(model, lockstep=step, **options))
        made.extend(workers)
        return *workers, said

    yield make
    for worker in made:
        if worker._thread.is_alive():
            worker._lockstep.leads = True  # nobody tells it any more
            worker.close(finish=False)


def request(n: int, **changes) -> Request:
    """A prompt of its own for every n."""
    return Request(tuple(5 + (i * (n + 3)) % 200 for i in range(4 + 3 * n)), 6 + n, **changes)


def end(ticket) -> Done:
    *_, last = ticket.events()
    assert isinstance(last, Done)
    return last


def test_a_follower_makes_the_same_tokens_in_the_same_turns(pair):
    leader, follower, _ = pair(max_rows=2, prefill_chunk=8)
    tickets = [
        leader.submit(request(0)),
        leader.submit(request(1, sampling=Sampling(temperature=0.9))),
        leader.submit(request(2, sampling=Sampling(temperature=0.9, top_k=5), logprobs=2)),
        leader.submit(request(3, stop=("e",))),
        leader.submit(request(4, sampling=Sampling(repetition_penalty=1.3))),
    ]
    gone = leader.submit(request(5))
    gone.cancel()
    for ticket in tickets:
        assert end(ticket).reason in ("length", "stop")
    assert end(gone).reason == "cancelled"
    leader.close()
    follower.join()
    assert follower.status.dead is None
    assert follower._check == leader._check != 0
    one, two = leader.status, follower.status
    for name in ("requests", "generated_tokens", "cached_tokens", "cancelled", "cache_bytes"):
        assert getattr(one, name) == getattr(two, name), name
    assert one.cancelled == 1


def test_a_follower_that_makes_other_tokens_ends(pair):
    def change(model):
        model.decoder.embed.weight = model.decoder.embed.weight[::-1]

    leader, follower, _ = pair(change)
    end(leader.submit(request(3)))
    follower.join()
    assert "other tokens than rank 0" in follower.status.dead
    leader.close()


def test_a_follower_whose_leader_is_gone_says_so(pair):
    leader, follower, said = pair()
    end(leader.submit(request(0)))
    said.put(None)
    follower.join()
    assert follower.status.dead == "lost ([ring] connection to a peer was lost)"
    leader.close()


def test_a_word_is_passed_while_there_is_nothing_to_do(pair):
    follower = pair()[1]
    seen, deadline = [], time.monotonic() + SECONDS
    usual = follower._lockstep.hear
    enough = threading.Event()

    def hear(busy: bool) -> News:
        seen.append(busy)
        if len(seen) > 3:
            enough.set()
        return usual(busy)

    follower._lockstep.hear = hear
    assert enough.wait(deadline - time.monotonic())
    assert seen[:3] == [False] * 3


samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 100),
    top_p=st.floats(0.1, 1),
    logit_bias=st.dictionaries(st.integers(0, 99), st.sampled_from([-1.5, 2.0, -float("inf")])),
    seed=st.integers(0, 2**64 - 1),
)
requests = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 99), min_size=1, max_size=9).map(tuple),
    max_tokens=st.integers(1, 99),
    sampling=samplings,
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    stop_tokens=st.frozensets(st.integers(0, 99), max_size=3),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 5),
    skip_special=st.booleans(),
)


@settings(max_examples=25)
@given(
    new=st.lists(requests, max_size=3),
    gone=st.lists(st.integers(0, 9), max_size=3),
    over=st.booleans(),
    check=st.integers(0, 2**32 - 1),
)
def test_news_arrive_as_they_were_told(new, gone, over, check):
    said: queue.Queue = queue.Queue()
    news = News(new, gone, over, check)
    _step(0, said).tell(news)
    assert _step(1, said).hear(True) == news


def test_a_grammar_arrives_as_it_was_told(tiny_llama):
    model = load(tiny_llama)
    said: queue.Queue = queue.Queue()
    grammar = Constraint.regex("[ab]+", model.tokenizer, model.spec.vocab)
    _step(0, said, model).tell(News([request(0, constraint=grammar)]))
    (heard,) = _step(1, said, model).hear(True).new
    assert heard.constraint.grammar == grammar.grammar
    assert heard.constraint.allowed().tolist() == grammar.allowed().tolist()
    assert replace(heard, constraint=None) == request(0)


def test_a_request_without_a_seed_gets_one():
    wish = Sampling(temperature=1.0)
    assert seeded(request(0, sampling=wish), 7).sampling == replace(wish, seed=7)
    assert seeded(request(0, sampling=replace(wish, seed=3)), 7).sampling.seed == 3


def _step(rank: int, said: queue.Queue, model=None) -> Lockstep:
    return Lockstep(FakeRanks(rank, said), model or _Model())  # type: ignore[arg-type]


class _Model:
    """As much of a model as is looked at."""

    class decoder:
        class spec:
            blocks = ()
