"""A running server as a side: by /tokenize where it has it, else by its count of prompt tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.files import find_model
from engine.tokenizer import Tokenizer, load_tokenizer
from harness.errors import BadCandidate, ServerStopped
from harness.tokenizers import compare, engine_side, server_side
from harness.tokenizers.corpus import CONVERSATIONS
from parity_tests.tokenizers import write_kind

SOURCE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ enable_thinking }}"


class Server:
    """Answers as llama.cpp does, or as vLLM; with `bare` only completions."""

    name = "http://here"
    refused: str | None = None  # a prompt that it does not take
    stops = False  # whether it takes none after that
    stopped = False

    def __init__(self, tokenizer: Tokenizer, spelling: str = "content", bos: int = 0) -> None:
        self.tokenizer, self.spelling, self.bos = tokenizer, spelling, bos

    def complete(self, prompt: str, count: int, stop: str | None = None) -> Any:
        return self.complete_anew(prompt, count)

    def complete_anew(self, prompt: str, count: int) -> Any:
        if prompt == self.refused or self.stopped:
            self.stopped = self.stops
            raise BadCandidate("http://here answered 404")
        return SimpleNamespace(prompt_tokens=len(self.tokenizer.encode(prompt)) + self.bos)

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        if self.spelling == "bare":
            return None
        if path == "/tokenize":
            llama = self.spelling == "content"
            special = body["add_special" if llama else "add_special_tokens"]
            ids = self.tokenizer.encode(body["content" if llama else "prompt"], special=special)
            return {"tokens": ids[:1] * self.bos + ids}
        if path == "/detokenize":
            return {self.spelling: self.tokenizer.decode(body["tokens"])}
        generation = body["add_generation_prompt"]
        more = body.get("chat_template_kwargs", {})
        render = self.tokenizer.templates.render
        return {"prompt": render(body["messages"], generation=generation, **more)}


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    files = write_kind(tmp_path, "byte_level")
    (tmp_path / "chat_template.jinja").write_text(SOURCE)
    return load_tokenizer(files)


def answers(tokenizer: Tokenizer, server: Server) -> dict[str, Any]:
    reference = engine_side(tokenizer)
    found = compare(reference, server_side(server, reference.special), 10)
    return {answer.question: answer for answer in found.answers}


@pytest.mark.parametrize("spelling", ["content", "prompt"])
def test_ids_and_templates(tokenizer, spelling):
    found = answers(tokenizer, Server(tokenizer, spelling))
    assert {answer.verdict for answer in found.values()} == {"pass", "skip"}
    assert {n for n, a in found.items() if a.verdict == "skip"} >= {"special ids", "streaming"}
    assert found["offsets"].reason == "http://here does not tell"


def test_bos_twice_is_found_by_ids(tokenizer):
    found = answers(tokenizer, Server(tokenizer, bos=1))
    assert found["ids"].verdict == "fail" and found["states"].verdict == "fail"


def test_counts_alone(tokenizer):
    found = answers(tokenizer, Server(tokenizer, "bare"))
    assert [n for n, a in found.items() if a.verdict == "pass"] == ["count"]
    found = answers(tokenizer, Server(tokenizer, "bare", bos=1))
    assert found["count"].verdict == "fail"
    assert found["count"].smallest.input == "'a'" or len(found["count"].smallest.input) <= 3


def test_a_text_that_begins_with_bos_is_counted_by_no_server_alike(tiny_llama):
    """One that puts no second BOS in front of it is not at fault, and one that puts two is."""
    tokenizer = load_tokenizer(find_model(tiny_llama))

    class Careful(Server):
        def complete(self, prompt: str, count: int, stop: str | None = None) -> Any:
            return SimpleNamespace(prompt_tokens=len(self.tokenizer.prompt(prompt)) + self.bos)

    for bos, verdict in ((0, "pass"), (1, "fail")):
        reference = engine_side(tokenizer)
        server = server_side(Careful(tokenizer, "bare", bos), reference.special)
        found = compare(reference, server, 100)
        assert {a.question: a for a in found.answers}["count"].verdict == verdict


def test_one_refusal_is_a_difference_and_an_end_of_answers_is_no_verdict(tokenizer):
    server = Server(tokenizer, "bare")
    server.refused = "naïve café Ångström"
    count = answers(tokenizer, server)["count"]
    assert (count.verdict, count.differences) == ("fail", 1)
    assert "answered 404" in count.smallest.actual
    server.stops = True
    with pytest.raises(ServerStopped, match=r"since it was asked to continue 'na\\xefve.*404"):
        answers(tokenizer, server)


def test_engine_refuses_where_the_template_does(tokenizer):
    side = engine_side(tokenizer)
    assert side.render is not None
    assert side.render(CONVERSATIONS[0], False) == "<user>Hello, who are you?"
