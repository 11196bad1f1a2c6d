"""A running server as candidate: mlx-lm's own, and stubs that are wrong in exactly one way."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import harness
from engine.files import find_model
from engine.tokenizer import load_tokenizer
from harness.backends.server import SECONDS_VARIABLE, ServerBackend, _last_digits
from harness.checks._served import hint
from harness.errors import BadCandidate
from harness.golden.store import GoldenReference
from harness.probes import TEXT
from harness.scores import coarse
from harness.types import TokenFacts

CHECKS = ["completion", "text", "logprobs", "usage", "stop"]
MODELS = Path(__file__).parents[2] / "golden" / "models"


# mlx-lm's own server


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """The address of `mlx_lm.server` on tiny-llama; other models are loaded when they are named."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "MLX_ENABLE_TF32": "0"}
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(MODELS / "tiny-llama")]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=os.environ | variables, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{url}/health", process)
        yield url
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def mlx_server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("hub")) as url:
        yield url


def test_mlx_lm_server_takes_the_right_tokens_and_two_of_its_answers_are_wrong(
    command, mlx_server, tmp_path
):
    """Found in mlx-lm 0.32.2: a byte-level tokenizer's text loses the space it begins with, and a
    stop string that begins inside a token is cut out of a text that goes on."""
    out = tmp_path / "verdict.json"
    arguments = ("harness", "compare", "--model", MODELS / "tiny-llama", "--candidate", mlx_server)
    result = command(*arguments, "--reference", "golden", "--json", out)
    assert result.status == 1, result.err
    document = json.loads(out.read_text())
    found = {check["name"]: check for check in document["checks"]}
    assert found["completion"]["verdict"] == "pass"
    assert found["completion"]["measures"]["equal"] == 64
    assert found["completion"]["measures"]["shown_as"] == "ids"
    assert found["logprobs"]["verdict"] == "pass"
    assert found["logprobs"]["measures"]["ratio"] < 3
    assert found["logprobs"]["measures"]["last_digit"] < 1e-9  # it prints all digits it has
    assert found["usage"]["verdict"] == "pass" and "BOS once" in found["usage"]["reason"]
    assert found["text"]["verdict"] == "fail"
    assert "lacks the space it begins with" in found["text"]["reason"]
    assert found["stop"]["verdict"] == "fail"
    assert "begins and ends inside tokens" in found["stop"]["reason"]
    assert document["first_divergence"]["check"] == "text"
    assert found["golden"]["verdict"] == "pass"  # a failure is not the golden's
    skipped = set(found) - {*CHECKS, "golden"}
    assert {"weights", "blocks", "logits", "greedy", "cache"} <= skipped
    assert {found[name]["verdict"] for name in skipped} == {"skip"}


def test_mlx_lm_server_on_a_sentencepiece_model_named_in_the_address(mlx_server):
    model = MODELS / "tiny-gemma3"
    found = ask(f"{mlx_server}#{model}", model, CHECKS)
    assert {n: v for n, v in verdicts(found).items() if n != "stop"} == dict.fromkeys(
        CHECKS[:-1], "pass"
    )
    assert "inside tokens" in reason(found, "stop")


def test_mlx_lm_server_at_bfloat16_against_torch(mlx_server, tmp_path):
    """It serves at the dtype of the files; its log-probabilities are of that dtype too, logits and
    their logarithmic sum rounded to it, which the limits of bfloat16 hold."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(MODELS / "tiny-llama", folder)
    import torch

    weights = load_file(folder / "model.safetensors")
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(rounded, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    url = f"{mlx_server}#{folder}"
    checks = ["completion", "logprobs"]
    found = harness.compare(folder, url, "torch", "bfloat16", checks)
    assert {check.dtype for check in found.checks} == {"bfloat16"}
    assert verdicts(found) == dict.fromkeys(checks, "pass")
    assert measure(found, "logprobs", "error") > 1e-3
    # The same server in place of one at float32.
    assert verdicts(ask(url, checks=["logprobs"]))["logprobs"] in ("fail", "skip")
    assert ask(url, checks=checks).exit_status == 1


@pytest.mark.full
def test_a_tokenizer_seen_by_counts_alone(command, tmp_path):
    """Found in mlx-lm 0.32.2: a prompt that is an earlier one with its continuation ends the thread
    that generates, and with it all answers."""

    def asked(url: str, name: str):
        model = MODELS / name
        options = ("--candidate", f"{url}#{model}", "--fuzz", "20")
        return command("harness", "tokenizer", "--model", model, *options)

    with serving(tmp_path) as url:
        whole, broken = asked(url, "tiny-gemma3"), asked(url, "tiny-llama")
    assert whole.status == 0, whole.out + whole.err
    assert "pass  count" in whole.out
    assert broken.status == 2
    assert "answers nothing any more since it was asked to continue ' '" in broken.err


def test_a_dtype_that_is_not_the_models_own_is_pointed_at():
    def compared(**config: str) -> Any:
        return SimpleNamespace(files=SimpleNamespace(config=config), dtype="float32")

    assert "config.json says bfloat16" in hint(compared(torch_dtype="bfloat16"))
    assert hint(compared(dtype="float32")) == hint(compared()) == ""


# Stubs


class Stub:
    """A server that answers as the golden of tiny-llama says, in one of the spellings there are.

    `change(answer, body)` spoils it; `refuse(body)` is a status and words, or None.
    """

    def __init__(self, spelling: str = "ids") -> None:
        files = find_model(MODELS / "tiny-llama")
        golden = GoldenReference(files, "float32")
        self.spelling, self.tokenizer = spelling, load_tokenizer(files)
        self.probe = next(p for p in golden.probes if p.prompt is not None)
        scores = golden.evidence(self.probe).scores
        start = self.probe.prompt or 0
        self.tokens = list(self.probe.tokens[start:])
        columns = scores.following(self.probe.tokens)[start - 1 :]
        z = scores.twin[start - 1 : -1].astype(np.float64)
        z = z - z.max(1, keepdims=True)
        z = z - np.log(np.exp(z).sum(1, keepdims=True))
        self.logprobs = z[np.arange(len(z)), columns].tolist()
        self.change: Callable[[dict, dict], Any] = lambda answer, body: None
        self.refuse: Callable[[dict], tuple[int, str] | None] = lambda body: None
        self.names: list[str] = []
        self.asked: list[dict] = []

    def text(self, tokens: list[int]) -> str:
        given = list(self.probe.tokens[: self.probe.prompt])
        whole = self.tokenizer.decode([*given, *tokens])
        return whole[len(self.tokenizer.decode(given)) :]

    def __call__(self, path: str, body: dict) -> tuple[int, Any]:
        self.asked.append(body)
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in self.names]}
        if path != ("/api/generate" if self.spelling == "generate" else "/v1/completions"):
            return 404, "Not Found"
        refused = self.refuse(body)
        if refused:
            return refused[0], {"error": {"message": refused[1]}}
        count = body["max_tokens"]
        tokens, logprobs = self.tokens[:count], self.logprobs[:count]
        text, why = self.text(tokens), "length" if len(tokens) == count else "stop"
        for stop in body.get("stop", []):
            if stop in text:
                text, why = text[: text.find(stop)], "stop"
        if self.spelling == "generate":
            return 200, {"response": text}
        asked = len(self.tokenizer.encode(body["prompt"]))
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": why}
        if body.get("logprobs"):
            choice["logprobs"] = self._shown(tokens, logprobs)
        usage = {"prompt_tokens": asked, "completion_tokens": len(tokens)}
        answer = {"choices": [choice], "usage": usage | {"total_tokens": asked + len(tokens)}}
        self.change(answer, body)
        return 200, answer

    def _shown(self, tokens: list[int], logprobs: list[float]) -> Any:
        pieces = [
            self.text(tokens[: i + 1])[len(self.text(tokens[:i])) :] for i in range(len(tokens))
        ]
        if self.spelling == "pieces":  # OpenAI's
            return {"tokens": pieces, "token_logprobs": logprobs, "top_logprobs": None}
        if self.spelling == "text":
            return None
        entries = zip(
            tokens, pieces, logprobs, strict=True
        )  # llama.cpp's; mlx_lm.server's is like it
        return {"content": [{"id": t, "token": p, "logprob": n} for t, p, n in entries]}


@pytest.fixture
def serve():
    """`serve(answer)` -> address of a server that gives `answer(path, body)` as status and JSON."""
    servers = []

    def start(answer: Callable[[str, dict], tuple[int, Any]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, said = answer(self.path, json.loads(body) if body else {})
                data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("spelling", ["ids", "pieces", "text", "generate"])
def test_a_right_server_passes_in_every_spelling(serve, spelling):
    stub = Stub(spelling)
    stub.names = ["tiny"]
    found = ask(serve(stub))
    told = verdicts(found)
    shown = {"generate": ["completion", "text"], "text": [n for n in CHECKS if n != "logprobs"]}
    assert {name for name, verdict in told.items() if verdict == "pass"} == set(
        shown.get(spelling, CHECKS)
    ), found.checks
    assert set(told.values()) <= {"pass", "skip"} and found.exit_status == 0
    if spelling == "text":
        assert "gives no log-probabilities" in reason(found, "logprobs")
    if spelling == "generate":
        assert "/api/generate" in reason(found, "usage")
    assert all(body.get("temperature", 0) == 0 for body in stub.asked)


def test_a_server_through_the_command_line(command, serve, tiny_llama):
    url = serve(Stub())
    result = command(
        "harness", "compare", "--model", tiny_llama, "--candidate", url, "--reference", "golden"
    )
    assert result.status == 0, result.out
    assert "PASS: parity holds" in result.out and "a server shows no arrays" in result.out
    assert max(len(line.rstrip()) for line in result.out.splitlines()) <= 100


def test_other_candidates_are_not_asked_what_only_servers_can_answer(tiny_llama):
    found = harness.compare(tiny_llama, "engine", "golden", checks=["greedy", *CHECKS])
    assert [check.name for check in found.checks] == ["greedy"]


# Each stub is wrong in one way, which one check finds and names


def usage(**more: int):
    def change(answer: dict, body: dict) -> None:
        for name, count in more.items():
            answer["usage"][name] += count
        if "prompt_tokens" in more:
            answer["usage"]["total_tokens"] += more["prompt_tokens"]

    return change


def of_one_text(answer: dict, body: dict) -> None:
    if "3.14159" in body["prompt"]:
        usage(prompt_tokens=2)(answer, body)


def choice(**new: Any):
    return lambda answer, body: answer["choices"][0].update(new)


def whole(change):
    """Only where all 64 tokens were asked for, and no stop string."""

    def changed(answer: dict, body: dict) -> None:
        if body["max_tokens"] > 1 and "stop" not in body:
            change(answer, body)

    return changed


def entries(answer: dict) -> list[dict]:
    return answer["choices"][0]["logprobs"]["content"]


def hotter(answer: dict, body: dict) -> None:
    for entry in entries(answer) if "logprobs" in answer["choices"][0] else []:
        entry["logprob"] *= 1.0001


def one_off(answer: dict, body: dict) -> None:
    entries(answer)[40]["logprob"] -= 1e-3


def not_a_number(answer: dict, body: dict) -> None:
    entries(answer)[40]["logprob"] = float("nan")


def another_token(answer: dict, body: dict) -> None:
    entries(answer)[20]["id"] = 77


def early(answer: dict, body: dict) -> None:
    del entries(answer)[30:]
    answer["choices"][0]["finish_reason"] = "stop"
    answer["usage"]["completion_tokens"] = 30
    answer["usage"]["total_tokens"] -= 34


def another_text(answer: dict, body: dict) -> None:
    text = answer["choices"][0]["text"]
    answer["choices"][0]["text"] = text[:20] + "§" + text[21:]


def more_text(answer: dict, body: dict) -> None:
    answer["choices"][0]["text"] += " and more"


def no_space(answer: dict, body: dict) -> None:
    answer["choices"][0]["text"] = answer["choices"][0]["text"].removeprefix(" ")


def stops_late(answer: dict, body: dict) -> None:
    if "stop" in body:
        answer["choices"][0]["text"] += body["stop"][0]


def stops_early(answer: dict, body: dict) -> None:
    if "stop" in body:
        answer["choices"][0]["text"] = answer["choices"][0]["text"][:-2]


def stops_without_saying(answer: dict, body: dict) -> None:
    if "stop" in body:
        answer["choices"][0]["finish_reason"] = "length"


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (usage(prompt_tokens=1), "usage", ["BOS is added twice"]),
        (usage(prompt_tokens=-1), "usage", ["BOS is not added"]),
        (of_one_text, "usage", ["digits", "is 26, not 24"]),
        (usage(completion_tokens=1), "usage", ["completion_tokens", "65", "64 were asked for"]),
        (usage(total_tokens=5), "usage", ["total_tokens"]),
        (whole(choice(finish_reason="stop")), "usage", ["finish_reason is 'stop', not 'length'"]),
        (hotter, "logprobs", ["times the noise (limit"]),
        (whole(one_off), "logprobs", ["that of token 40 is"]),
        (whole(not_a_number), "logprobs", ["that of token 40 is nan"]),
        (whole(another_token), "completion", ["token 20 of 64 is 77", "times the noise (a tie"]),
        (whole(early), "completion", ["token 30 of 64 is the end", "times the noise (a tie"]),
        (whole(another_text), "text", ["the text of 64 right tokens differs", "§"]),
        (whole(more_text), "text", ["and more"]),
        (no_space, "text", ["lacks the space it begins with"]),
        (stops_late, "stop", ["a token of its own", "the text goes on"]),
        (stops_early, "stop", ["the text ends 2 characters early"]),
        (stops_without_saying, "stop", ["finish_reason is 'length', not 'stop'"]),
    ],
)
def test_a_server_wrong_in_one_way_fails_that_check(serve, change, check, words):
    stub = Stub()
    stub.change = change
    found = ask(serve(stub))
    failed = {name for name, verdict in verdicts(found).items() if verdict == "fail"}
    assert failed == {check}, [(c.name, c.verdict, c.reason) for c in found.checks]
    assert found.exit_status == 1 and found.first_divergence.check == check
    for word in words:
        assert word in reason(found, check)


@pytest.mark.parametrize("spelling", ["pieces", "text"])
def test_without_ids_the_text_tells_which_token_is_another(serve, spelling):
    stub = Stub(spelling)
    stub.tokens = [*stub.tokens[:20], 77, *stub.tokens[21:]]
    found = ask(serve(stub))
    assert verdicts(found)["completion"] == "fail"
    assert "token 20 of 64 is " in reason(found, "completion")
    stub.tokens, stub.change = Stub().tokens, whole(more_text)
    assert "the text goes on" in reason(ask(serve(stub), checks=["completion"]), "completion")


@pytest.mark.parametrize("spelling", ["ids", "text"])
def test_a_difference_within_noise_is_a_tie_and_ends_the_comparison(serve, spelling, monkeypatch):
    monkeypatch.setattr("harness.checks.completion.TIE", 1e9)
    stub = Stub(spelling)
    stub.tokens = [*stub.tokens[:20], 77, *stub.tokens[21:]]
    found = ask(serve(stub), checks=["completion", "text"])
    assert verdicts(found) == {"completion": "pass", "text": "pass"}
    assert measure(found, "completion", "ties") == 1
    assert "20 of 64 tokens" in reason(found, "completion")
    assert "then a tie: token 20" in reason(found, "completion")


def test_an_end_of_text_is_expected_where_the_reference_takes_one(serve, monkeypatch):
    """The 21st token stands in for an EOS: nothing else in the golden ends."""
    stub = Stub()
    eos, original = stub.tokens[20], GoldenReference.tokens

    def tokens(self) -> TokenFacts:
        facts = original(self)
        return TokenFacts(facts.ids, facts.bos_id, (eos,), facts.max_id, facts.rows)

    monkeypatch.setattr(GoldenReference, "tokens", tokens)
    at = stub.tokens.index(eos)
    assert f"after {at} tokens, and goes on" in reason(ask(serve(stub)), "completion")
    stub.tokens, stub.logprobs = stub.tokens[:at], stub.logprobs[:at]
    found = ask(serve(stub))
    assert verdicts(found)["completion"] == verdicts(found)["usage"] == "pass"
    assert "and so is the end" in reason(found, "completion")
    assert "ends by 'stop' at EOS" in reason(found, "usage")
    stub.change = whole(choice(finish_reason="length"))
    found = ask(serve(stub), checks=["completion", "usage"])
    assert verdicts(found) == {"completion": "pass", "usage": "fail"}
    stub.change = whole(more_text)
    assert verdicts(ask(serve(stub), checks=["text"])) == {"text": "fail"}


def test_log_probabilities_are_judged_as_far_as_they_are_printed(serve):
    stub = Stub()

    def three_decimals(answer: dict, body: dict) -> None:
        for entry in answer["choices"][0].get("logprobs", {}).get("content", []):
            entry["logprob"] = round(entry["logprob"], 3)

    stub.change = three_decimals
    found = ask(serve(stub), checks=["logprobs"])
    assert verdicts(found) == {"logprobs": "pass"}
    assert measure(found, "logprobs", "last_digit") == pytest.approx(1e-3)
    assert "that of printing" in reason(found, "logprobs")
    stub.logprobs = [n - 0.01 for n in stub.logprobs]
    assert verdicts(ask(serve(stub), checks=["logprobs"])) == {"logprobs": "fail"}


def test_too_few_tokens_say_nothing_of_log_probabilities(serve):
    stub = Stub()
    stub.tokens = [*stub.tokens[:9], 77, *stub.tokens[10:]]
    found = ask(serve(stub), checks=["logprobs"])
    assert verdicts(found) == {"logprobs": "skip"} and "of 9 tokens" in reason(found, "logprobs")


def test_tokens_after_a_tie_between_experts_say_nothing(serve, monkeypatch):
    stub = Stub()
    at = (stub.probe.prompt or 0) + 30

    def close(self) -> np.ndarray:
        return np.arange(len(stub.probe.tokens)) == at

    monkeypatch.setattr("harness.checks._served.Ties.close", close)
    stub.tokens = [*stub.tokens[:40], 77, *stub.tokens[41:]]
    stub.logprobs = [*stub.logprobs[:31], *(2 * n for n in stub.logprobs[31:])]
    found = ask(serve(stub), checks=["completion", "logprobs"])
    assert verdicts(found) == {"completion": "pass", "logprobs": "pass"}
    assert "then a tie: token 40" in reason(found, "completion")
    assert measure(found, "logprobs", "tokens") == 31


@pytest.mark.parametrize("change", [None, one_off, another_token])
def test_scores_of_few_tokens_are_enough(serve, monkeypatch, change):
    """A golden that holds a sketch of the logits knows the likeliest tokens and the ones taken."""
    original = GoldenReference.evidence

    def evidence(self, probe) -> Any:
        found = original(self, probe)
        return replace(found, known_scores=coarse(found.scores, probe.tokens))

    monkeypatch.setattr(GoldenReference, "evidence", evidence)
    stub = Stub()
    stub.change = whole(change) if change else stub.change
    checks = ["completion", "logprobs"]
    wrong = {one_off: "logprobs", another_token: "completion"}
    expected = {name: "fail" if wrong.get(change) == name else "pass" for name in checks}
    assert verdicts(ask(serve(stub), checks=checks)) == expected


def test_what_is_not_finite_is_null_in_the_json(command, serve, tiny_llama, tmp_path):
    stub, out = Stub(), tmp_path / "verdict.json"
    stub.change = whole(not_a_number)
    arguments = ("harness", "compare", "--model", tiny_llama, "--candidate", serve(stub))
    assert command(*arguments, "--reference", "golden", "--json", out).status == 1
    first = json.loads(out.read_text(), parse_constant=pytest.fail)["first_divergence"]
    assert first["check"] == "logprobs" and first["ratio"] is None and first["token"] == 74


@pytest.mark.parametrize(
    ("printed", "sizes"),
    [
        (["-1.25", "-0.5", "-12.3456"], [-4, -4, -4]),  # four decimals, zeros left out
        (["-0.000123456", "-12.3456", "-1.5"], [-9, -4, -5]),  # six significant digits
        (["-2.9530439376831055", "-0.71240234375"], [-16, -16]),
        (["0", "-0.25"], [-2, -2]),
        (["0"], [None]),
        (["NaN", "-0.5"], [-1, -1]),
        (["1e999"], [300]),
    ],
)
def test_size_of_the_last_digit_printed(printed, sizes):
    expected = [0.0 if size is None else 10.0**size for size in sizes]
    assert _last_digits([Decimal(each) for each in printed]) == pytest.approx(expected)


# What may be asked, and of which model


def test_integer_logprobs_are_asked_first_and_others_where_they_are_refused(serve):
    stub = Stub()
    stub.refuse = lambda body: (400, "a bool") if type(body.get("logprobs", True)) is int else None
    assert verdicts(ask(serve(stub), checks=["logprobs"])) == {"logprobs": "pass"}
    stub.refuse = lambda body: (400, "unknown field") if "logprobs" in body else None
    found = ask(serve(stub), checks=["completion", "logprobs"])
    assert verdicts(found) == {"completion": "pass", "logprobs": "skip"}


def test_of_several_refusals_that_of_the_plainest_request_is_shown(serve):
    stub = Stub()
    stub.refuse = lambda body: (400, "a bool" if body.get("logprobs") == 1 else "no such model")
    with pytest.raises(BadCandidate, match="no such model"):
        ask(serve(stub))


def test_the_only_model_listed_is_taken_and_of_several_one_must_be_named(serve):
    stub = Stub()
    stub.refuse = lambda body: None if body.get("model") == "b" else (422, "missing model")
    stub.names = ["b"]
    url = serve(stub)
    assert ask(url, checks=["completion"]).exit_status == 0
    stub.names = ["a", "b"]
    with pytest.raises(BadCandidate, match=r"422: 'missing model'; write .*#MODEL for one of a, b"):
        ask(url)
    assert ask(f"{url}/v1/#b", checks=["completion"]).exit_status == 0


def test_a_server_is_asked_where_an_event_loop_runs_already(serve):
    async def notebook():
        return ask(serve(Stub()), checks=["completion"])

    assert asyncio.run(notebook()).exit_status == 0


def test_what_needs_arrays_is_one_line(command, serve, tiny_llama):
    url = serve(Stub())
    arguments = ("harness", "compare", "--model", tiny_llama, "--candidate", url)
    result = command(*arguments, "--reference", "golden", "--until-decided")
    assert_one_line(result, [url, "shows no arrays"])


# Servers that do not answer, or answer nonsense


def raw(answer: Callable[[socket.socket], None]):
    """A listening socket whose every connection gets `answer`; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    def one(connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                answer(connection)
            except OSError:
                pass

    threading.Thread(target=loop, daemon=True).start()
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


def hang(connection: socket.socket) -> None:
    time.sleep(20)


def drip(connection: socket.socket, head: bytes) -> None:
    connection.sendall(head)
    for _ in range(400):
        connection.sendall(b" ")
        time.sleep(0.05)


def drip_headers(connection: socket.socket) -> None:
    drip(connection, b"HTTP/1.1 200 OK\r\nX-Slow:")


def drip_body(connection: socket.socket) -> None:
    drip(connection, b"HTTP/1.1 200 OK\r\n\r\n")


def http(status: str, body: bytes, *headers: str):
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return lambda connection: connection.sendall("\r\n".join(head).encode() + body)


def flood(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(40):
        connection.sendall(b"x" * (1 << 20))


TEXT_ANSWER = b'{"choices": [{"text": %s}]}'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hang, ["within 0.5 s", SECONDS_VARIABLE]),
        (drip_headers, ["within 0.5 s"]),
        (drip_body, ["within 0.5 s"]),
        (lambda connection: None, ["broke off its answer"]),
        (lambda c: c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"), ["broke off"]),
        (lambda c: c.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n"), ["broke off"]),
        (http("200 OK", b"<html>\x1b[31mhello"), ["is no JSON", "<html>\\x1b[31mhello"]),
        (http("200 OK", b""), ["is no JSON"]),
        (http("200 OK", b"[" * 100_000), ["is no JSON"]),
        (http("200 OK", b'{"x": 1e99999999999999999999999}'), ["is no JSON"]),
        (http("200 OK", b'{"choices": []}'), ["without a text"]),
        (http("200 OK", TEXT_ANSWER % b"7"), ["without a text"]),
        (http("200 OK", b'"\\ud800"'), ["without a text"]),
        (http("302 Found", b"", "Location: http://example.com/"), ["302"]),
        (http("500 Oh", b'{"error": {"message": "out\\nof memory"}}'), ["500", "'out of memory'"]),
        (http("401 No", b'{"error": "a key"}'), ["401", "'a key'"]),
        (http("404 No", b"Not Found"), ["404", "Not Found"]),
        (http("200 OK", b"\x1f\x8b\x08\x00", "Content-Encoding: gzip"), ["is no JSON"]),
        (flood, ["more than 16 MiB"]),
    ],
)
def test_strange_servers_are_one_line_and_exit_2(command, tiny_llama, monkeypatch, answer, words):
    monkeypatch.setenv(SECONDS_VARIABLE, "0.5" if answer is not flood else "20")
    listener, url = raw(answer)
    with listener:
        arguments = ("harness", "compare", "--model", tiny_llama, "--candidate", url)
        result = command(*arguments, "--reference", "golden")
    assert_one_line(result, [url.removeprefix("http://"), *words])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1", ["no server answers", "start it"]),
        ("http://", ["http://HOST:PORT"]),
        ("http://127.0.0.1:port", ["http://HOST:PORT"]),
        ("server:tiny", ["'tiny'", "http://HOST:PORT"]),
    ],
)
def test_bad_addresses_are_one_line_and_exit_2(command, tiny_llama, url, words):
    result = command("harness", "compare", "--model", tiny_llama, "--candidate", url)
    assert_one_line(result, words)


def test_a_bad_number_of_seconds_is_one_line(command, tiny_llama, monkeypatch):
    monkeypatch.setenv(SECONDS_VARIABLE, "soon")
    arguments = ("harness", "compare", "--model", tiny_llama, "--candidate", "http://127.0.0.1:1")
    assert_one_line(command(*arguments), ["'soon'", SECONDS_VARIABLE])


def test_a_question_is_put_once(serve):
    stub = Stub()
    backend = ServerBackend(serve(stub), "float32")
    before = len(stub.asked)
    assert backend.complete(TEXT, 3) is backend.complete(TEXT, 3)
    assert len(stub.asked) == before + 1
    with pytest.raises(BadCandidate, match="shows no arrays"):
        backend.forward([1])


# Helpers


def ask(url: str, model: Path = MODELS / "tiny-llama", checks: list[str] = CHECKS) -> Any:
    return harness.compare(model, url, "golden", checks=checks)


def verdicts(found: Any) -> dict[str, str]:
    """Of the checks that were asked for; whether a golden is stale is asked where one fails."""
    return {check.name: check.verdict for check in found.checks if check.name != "golden"}


def reason(found: Any, name: str) -> str:
    return next(check.reason for check in found.checks if check.name == name)


def measure(found: Any, name: str, what: str) -> Any:
    return next(check.measures[what] for check in found.checks if check.name == name)


def assert_one_line(result: Any, words: list[str]) -> None:
    assert result.status == 2, result.out + result.err
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("harness: "), result.err
    for word in words:
        assert word in lines[0], lines[0]


def _wait(url: str, process: subprocess.Popen) -> None:
    for _ in range(600):
        assert process.poll() is None, "mlx_lm.server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")
