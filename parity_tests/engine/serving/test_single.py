"""The worker that runs one request at a time, with MLX as its backend."""

from __future__ import annotations

import pytest

from engine.backend import MLX, open_model
from engine.errors import InvalidPrompt, QueueFull, ShuttingDown
from engine.files import find_model
from engine.serving.requests import Done, Request
from engine.serving.single import SingleWorker


@pytest.fixture(scope="module")
def made(chat_model):
    """A function that makes workers; each is closed."""
    running = open_model(find_model(chat_model), MLX)
    tokenizer = running.tokenizer()
    next(running.steps(tokenizer.prompt("x"), 1))  # what a thread reads, no other can evaluate
    workers = []

    def make(**options):
        workers.append(SingleWorker(running, tokenizer, **options))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close(finish=False)


def ask(tokenizer, text, count=12, **more) -> Request:
    return Request(tuple(tokenizer.prompt(text)), count, **more)


def test_answers_are_those_of_generate(made, alone, tokenizer):
    worker = made()
    tickets = [worker.submit(ask(tokenizer, text)) for text in ("def main(", "import os\n")]
    for ticket, text in zip(tickets, ("def main(", "import os\n"), strict=True):
        *pieces, done = ticket.events()
        assert "".join(piece.text for piece in pieces) + done.text == alone(text, 12)[0]
        assert done.reason == "length" and done.completion_tokens == len(pieces) == 12
    status = worker.status
    assert status.requests == 2 and status.generated_tokens == 24 and status.rows == 1


def test_stop_strings_and_logprobs(made, alone, tokenizer):
    text = alone("def main(", 12)[0]
    *pieces, done = (
        made().submit(ask(tokenizer, "def main(", stop=(text[5:8],), logprobs=1)).events()
    )
    assert "".join(piece.text for piece in pieces) + done.text == text[: text.index(text[5:8])]
    assert done.reason == "stop" and done.stopped_by == text[5:8]
    assert all(piece.best[0] == (piece.token, piece.logprob) for piece in pieces)


def test_cancelled_and_refused(made, tokenizer):
    worker = made(queue=1)
    with pytest.raises(InvalidPrompt):
        worker.submit(Request((), 1))
    with pytest.raises(InvalidPrompt):
        worker.submit(Request((512,), 1))
    running = worker.submit(ask(tokenizer, "def main(", 10_000, ignore_eos=True))
    events = running.events()
    next(events)
    waiting = worker.submit(ask(tokenizer, "x"))
    with pytest.raises(QueueFull) as full:
        worker.submit(ask(tokenizer, "y"))
    assert full.value.retry_after >= 1
    running.cancel()
    ends = [event for event in events if isinstance(event, Done)]
    assert ends[0].reason == "cancelled"
    assert isinstance(list(waiting.events())[-1], Done)
    worker.close()
    with pytest.raises(ShuttingDown):
        worker.submit(ask(tokenizer, "x"))
