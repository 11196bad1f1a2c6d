"""OpenAI's protocol through OpenAI's own client, against a real server process."""

from __future__ import annotations

import json

import openai
import pytest

from engine.serving.app import application
from parity_tests.engine.serving.standin import Worker, said

PROMPTS = ("def main(", "import os\n", "class Node:\n    def ")
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a function"}]


def connect(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(server):
    with connect(server.url) as client:
        yield client


@pytest.fixture
def scripted(connected):
    """`scripted(worker)` -> OpenAI's client of the application over a scripted worker."""
    return lambda worker: connected(worker, connect)


def test_models_lists_the_one(client):
    (model,) = client.models.list().data
    assert model.id == "tiny-chat" and model.object == "model"
    assert client.models.retrieve("tiny-chat").id == "tiny-chat"
    with pytest.raises(openai.NotFoundError, match="'other'"):
        client.models.retrieve("other")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_completion_is_what_generate_gives(client, alone, tokenizer, prompt):
    text, count = alone(prompt, 20)
    told = client.completions.create(model="tiny-chat", prompt=prompt, max_tokens=20, temperature=0)
    assert told.choices[0].text == text
    assert told.usage.prompt_tokens == len(tokenizer.prompt(prompt))
    assert told.usage.completion_tokens == count
    assert told.usage.total_tokens == told.usage.prompt_tokens + count
    other, _ = alone(prompt + "x", 20)
    assert other != text


def test_completion_takes_ids_and_several_prompts(client, alone, tokenizer):
    ids = [tokenizer.prompt(prompt) for prompt in PROMPTS]
    told = client.completions.create(model="", prompt=ids, max_tokens=12, temperature=0)
    assert [c.text for c in told.choices] == [alone(prompt, 12)[0] for prompt in PROMPTS]
    assert [c.index for c in told.choices] == [0, 1, 2]
    assert told.usage.prompt_tokens == sum(map(len, ids))
    one = client.completions.create(model="", prompt=ids[0], max_tokens=12, temperature=0)
    assert one.choices[0].text == told.choices[0].text


@pytest.mark.parametrize("prompt", PROMPTS)
def test_streamed_completion_is_the_whole_one(client, alone, prompt):
    chunks = list(
        client.completions.create(
            model="tiny-chat", prompt=prompt, max_tokens=20, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    text, count = alone(prompt, 20)
    assert "".join(c.choices[0].text for c in chunks[:-1]) == text
    assert [c.choices[0].finish_reason for c in chunks[:-1]].count(None) == len(chunks) - 2
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == count


def test_chat_is_what_generate_gives_on_the_template(client, alone, tokenizer):
    ids = tokenizer.chat(MESSAGES)
    assert ids.count(tokenizer.bos_id) == 1
    text, _ = alone(ids, 20)
    told = client.chat.completions.create(
        model="default", messages=MESSAGES, max_completion_tokens=20, temperature=0
    )
    assert told.choices[0].message.content == text and told.choices[0].message.role == "assistant"
    assert told.usage.prompt_tokens == len(ids)
    stream = client.chat.completions.create(
        model="default", messages=MESSAGES, max_tokens=20, temperature=0, stream=True
    )
    pieces = [chunk.choices[0] for chunk in stream]
    assert "".join(piece.delta.content or "" for piece in pieces) == text
    assert pieces[0].delta.role == "assistant"
    assert pieces[-1].finish_reason == told.choices[0].finish_reason


def test_content_in_parts_is_one_text(client):
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "function"}]
    asked = {"model": "", "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(messages=MESSAGES, **asked)
    split = client.chat.completions.create(
        messages=[{**MESSAGES[0], "role": "developer"}, {"role": "user", "content": parts}], **asked
    )
    assert split.choices[0].message.content == whole.choices[0].message.content


def test_stop_ends_before_the_string(client, alone):
    text, _ = alone(PROMPTS[0], 20)
    stop = text[6:9]
    told = client.completions.create(
        model="", prompt=PROMPTS[0], max_tokens=20, temperature=0, stop=stop
    )
    assert told.choices[0].text == text[: text.index(stop)]
    assert told.choices[0].finish_reason == "stop"
    free = client.completions.create(model="", prompt=PROMPTS[0], max_tokens=20, temperature=0)
    assert free.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_tokens_end_every_answer_before_them(client, alone, tokenizer, stream):
    """Also of `n` and of several prompts, and of the server's own end tokens nothing is lost."""
    ids = {prompt: tokenizer.encode(alone(prompt, 20)[0], special=False) for prompt in PROMPTS[:2]}
    ends = [tokens[5] for tokens in ids.values()]
    asked = {
        "model": "", "prompt": list(ids), "max_tokens": 20, "temperature": 0, "n": 2,
        "extra_body": {"stop_token_ids": ends},
    }  # fmt: skip
    told = client.completions.create(**asked, stream=stream)
    texts, reasons = [""] * 4, [None] * 4
    for choice in [c for chunk in told for c in chunk.choices] if stream else told.choices:
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    before = [
        tokenizer.decode(tokens[: min(tokens.index(end) for end in ends if end in tokens)])
        for tokens in ids.values()
    ]
    assert texts == [before[0], before[0], before[1], before[1]] and reasons == ["stop"] * 4
    assert before[0] != alone(PROMPTS[0], 20)[0]


def test_echo_repeats_the_prompt(client, alone):
    text, _ = alone(PROMPTS[0], 8)
    asked = {"model": "", "prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0, "echo": True}
    assert client.completions.create(**asked).choices[0].text == PROMPTS[0] + text
    stream = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == PROMPTS[0] + text


def test_a_seed_says_everything_and_n_answers_differ(client):
    asked = {"model": "", "prompt": PROMPTS[0], "max_tokens": 16, "temperature": 1, "n": 3}
    first = [c.text for c in client.completions.create(**asked, seed=5).choices]
    again = [c.text for c in client.completions.create(**asked, seed=5).choices]
    other = [c.text for c in client.completions.create(**asked, seed=-9).choices]
    assert first == again and first != other and len(set(first)) == 3


@pytest.mark.parametrize("logprobs", [2, True])
def test_logprobs_of_completions(client, logprobs):
    told = client.completions.create(
        model="", prompt=PROMPTS[0], max_tokens=8, temperature=0, logprobs=logprobs,
        extra_body={"top_logprobs": 2} if logprobs is True else None,
    )  # fmt: skip
    choice = told.choices[0]
    if logprobs is True:
        entries = choice.logprobs.model_dump()["content"]
        tokens = [entry["token"] for entry in entries]
        best = [entry["top_logprobs"][0]["logprob"] for entry in entries]
        taken = [entry["logprob"] for entry in entries]
    else:
        tokens, taken = choice.logprobs.tokens, choice.logprobs.token_logprobs
        best = [max(each.values()) for each in choice.logprobs.top_logprobs]
        assert choice.logprobs.text_offset[:2] == [0, len(tokens[0])]
    assert "".join(tokens) == choice.text and len(tokens) == 8
    assert best == taken and all(value < 0 for value in taken)  # greedy takes the best


def test_logprobs_of_chats_are_streamed_too(client):
    asked = {
        "model": "", "messages": MESSAGES, "max_tokens": 8, "temperature": 0,
        "logprobs": True, "top_logprobs": 1,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    stream = client.chat.completions.create(**asked, stream=True)
    streamed = [e for c in stream if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert streamed == whole and len(whole) == 8
    assert bytes(b for entry in whole for b in entry.bytes).decode()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": 3}, "temperature=3"),
        ({"temperature": "1"}, "temperature"),
        ({"max_tokens": 65}, "at most 64"),
        ({"n": 17}, "17 answers"),
        ({"stop": ["x"] * 17}, "17 stop strings"),
        ({"stop": [""]}, "empty"),
        ({"stop_token_ids": [3, 512]}, "stop_token_ids has 512"),
        ({"logit_bias": {"512": 1}}, "below 512"),
        ({"logit_bias": {"a": 1}}, "token ids"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stream_options": {"include_usage": True}}, "stream=true"),
        ({"top_logprobs": 3}, "logprobs=true"),
        ({"chat_template_kwargs": {"generation": False}}, "generation"),
        ({"response_format": {"type": "json_schema"}}, "schema"),
        ({"modalities": ["audio"]}, "audio"),
    ],
)
def test_bad_requests_are_refused_in_one_line(client, change, named):
    asked = {"model": "", "messages": MESSAGES, "max_tokens": 4} | change
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", cast_to=object, body=asked)
    error = refused.value.body
    assert named in error["message"] and "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="'gpt-4'") as refused:
        client.completions.create(model="gpt-4", prompt="x")
    assert refused.value.body["code"] == "model_not_found"


def test_a_model_without_template_has_no_chats(service, plain_tokenizer):
    from starlette.testclient import TestClient

    served = service(Worker(lambda request: said("x")))
    served.tokenizer = plain_tokenizer
    served.__post_init__()
    told = TestClient(application(served), base_url="http://localhost").post(
        "/v1/chat/completions", json={"messages": MESSAGES}
    )
    assert told.status_code == 400 and "chat template" in told.json()["error"]["message"]


def test_what_is_asked_reaches_the_worker(scripted):
    worker = Worker(lambda request: said("x"))
    scripted(worker).chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0.5, top_p=0.9, presence_penalty=0.25,
        frequency_penalty=0.75, logit_bias={"7": -100}, seed=3, stop=["a", "b"], n=2,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5, "ignore_eos": True,
                    "stop_token_ids": [9]},
    )  # fmt: skip
    one, two = worker.requests
    assert one.sampling.seed == 3 and two.sampling.seed == 4
    assert (one.sampling.temperature, one.sampling.top_p, one.sampling.top_k) == (0.5, 0.9, 5)
    assert (one.sampling.presence_penalty, one.sampling.frequency_penalty) == (0.25, 0.75)
    assert (one.sampling.min_p, one.sampling.repetition_penalty) == (0.1, 1.5)
    assert dict(one.sampling.logit_bias) == {7: -100}
    assert one.stop == ("a", "b") and one.stop_tokens == {9} and one.ignore_eos
    assert one.prompt == two.prompt and one.max_tokens == 4096 and one.logprobs is None


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_told_from_text(scripted, stream):
    worker = Worker(lambda request: said("I look. ", *CALL))
    client = scripted(worker)
    asked = {"model": "", "messages": MESSAGES, "tools": TOOLS}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I look. "
    (call,) = choice.message.tool_calls
    assert call.function.name == "look" and json.loads(call.function.arguments) == {"at": "sky"}
    text = client.chat.completions.create(model="", messages=MESSAGES).choices[0]
    assert text.message.content == "I look. " + CALL and not text.message.tool_calls


def test_tools_and_their_results_reach_the_template(scripted, tokenizer):
    worker = Worker(lambda request: said("x"))
    function = {"name": "look", "arguments": '{"at": "sky"}'}
    called = {
        "role": "assistant",
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    result = {"role": "tool", "tool_call_id": "1", "content": "blue"}
    scripted(worker).chat.completions.create(
        model="", messages=[*MESSAGES, called, result], tools=TOOLS
    )
    text = tokenizer.decode(worker.requests[0].prompt)
    assert "# tool: blue" in text and '"name": "look"' in text


def test_a_failure_in_a_stream_is_an_error_of_the_client(scripted):
    from engine.serving.requests import Done, Piece

    events = [Piece("a", 1), Done("error", "", 3, 0, 1, error="the grammar allows no token")]
    client = scripted(Worker(lambda request: events))
    with pytest.raises(openai.APIError, match="allows no token"):
        list(client.completions.create(model="", prompt="x", stream=True))
    with pytest.raises(openai.InternalServerError, match="allows no token"):
        client.completions.create(model="", prompt="x")
