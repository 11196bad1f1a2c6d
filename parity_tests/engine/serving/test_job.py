"""How one request's tokens are chosen, told and ended, beside others."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest

from engine.sampling import Sampling
from engine.serving.requests import Request

from .models import alone, read, tokens, worker_of


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
