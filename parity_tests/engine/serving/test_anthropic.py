"""Anthropic's protocol through Anthropic's own client, against a real server process."""

from __future__ import annotations

import anthropic
import pytest

from parity_tests.engine.serving.standin import Worker, said

MESSAGES = [{"role": "user", "content": "a function"}]
TURNS = [{"role": "system", "content": "be brief"}, *MESSAGES]
ASKED = {
    "model": "default", "system": "be brief", "messages": MESSAGES, "max_tokens": 16,
    "extra_body": {"temperature": 0},  # which the client's own arguments no longer know
}  # fmt: skip
RAW = {"model": "", "messages": MESSAGES, "max_tokens": 4}
TOOLS = [{"name": "look", "input_schema": {"type": "object"}}]


def connect(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(server):
    with connect(server.url) as client:
        yield client


@pytest.fixture
def scripted(connected):
    """`scripted(worker)` -> Anthropic's client of the application over a scripted worker."""
    return lambda worker: connected(worker, connect)


def test_message_is_what_generate_gives_on_the_template(client, alone, tokenizer):
    ids = tokenizer.chat(TURNS)
    text, count = alone(ids, 16)
    told = client.messages.create(**ASKED)
    assert [block.text for block in told.content] == [text]
    usage = told.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(ids)
    assert usage.output_tokens == count and told.stop_reason == "max_tokens"
    assert told.role == "assistant" and told.model == "tiny-chat"
    other = client.messages.create(**ASKED | {"system": "be long"})
    assert other.content != told.content


def test_stream_has_the_same_text_in_anthropics_order(client):
    whole = client.messages.create(**ASKED)
    kinds, deltas = [], []
    with client.messages.stream(**ASKED) as stream:
        for event in stream:
            kinds.append(event.type)
            if event.type == "content_block_delta":
                deltas.append(event.delta.text)
        final = stream.get_final_message()
    assert "".join(deltas) == whole.content[0].text == final.content[0].text
    raw = [kind for kind in kinds if kind not in ("text", "ping")]  # "text" is the client's own
    assert raw[:2] == ["message_start", "content_block_start"]
    assert set(raw[2:-3]) == {"content_block_delta"}
    assert raw[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_stop_sequence_is_named(client):
    text = client.messages.create(**ASKED).content[0].text
    told = client.messages.create(**ASKED, stop_sequences=[text[5:8]])
    assert told.stop_reason == "stop_sequence" and told.stop_sequence == text[5:8]
    assert told.content[0].text == text[: text.index(text[5:8])]


def test_an_answer_goes_on_from_the_assistants_last_message(client, alone, tokenizer):
    begun = {"role": "assistant", "content": "__init__(self, "}
    with pytest.raises(anthropic.BadRequestError, match="ends with spaces"):
        client.messages.create(**ASKED | {"messages": [*MESSAGES, begun]})
    begun["content"] = begun["content"].rstrip()
    told = client.messages.create(**ASKED | {"messages": [*MESSAGES, begun]})
    prompt = tokenizer.templates.render(TURNS, generation=True) + begun["content"]
    assert told.content[0].text == alone(tokenizer.encode(prompt, special=False), 16)[0]


def test_tokens_are_counted(client, tokenizer):
    told = client.messages.count_tokens(model="", system="be brief", messages=MESSAGES)
    assert told.input_tokens == len(tokenizer.chat(TURNS))
    blocks = [{"type": "text", "text": "a func"}, {"type": "text", "text": "tion"}]
    same = client.messages.count_tokens(
        model="", system="be brief", messages=[{"role": "user", "content": blocks}]
    )
    assert same.input_tokens == told.input_tokens


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"temperature": 1.5}, "temperature=1.5"),
        ({"max_tokens": 65}, "at most 64"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": TOOLS, "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_bad_requests_are_refused_in_one_line(client, change, named):
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.post("/v1/messages", cast_to=object, body=RAW | change)
    body = refused.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert named in body["error"]["message"] and "\n" not in body["error"]["message"]


def test_another_model_is_not_found(client):
    with pytest.raises(anthropic.NotFoundError, match="'claude'"):
        client.messages.create(**ASKED | {"model": "claude"})


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_blocks(scripted, stream):
    call = '<tool_call>{"name": "look", "arguments": {"at": "sky"}}</tool_call>'
    client = scripted(Worker(lambda request: said("I look. ", call)))
    asked = ASKED | {"model": "", "tools": TOOLS}
    if stream:
        with client.messages.stream(**asked) as events:
            told = events.get_final_message()
    else:
        told = client.messages.create(**asked)
    text, use = told.content
    assert text.text == "I look. " and told.stop_reason == "tool_use"
    assert use.type == "tool_use" and use.name == "look" and use.input == {"at": "sky"}


def test_calls_and_results_of_tools_reach_the_template(scripted, tokenizer):
    worker = Worker(lambda request: said("x"))
    use = {"type": "tool_use", "id": "1", "name": "look", "input": {"at": "sky"}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "blue"}
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": [{"type": "text", "text": "I look"}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
    ]
    scripted(worker).messages.create(**ASKED | {"model": "", "messages": turns, "tools": TOOLS})
    text = tokenizer.decode(worker.requests[0].prompt)
    for line in ("# assistant: I look\n", "# tool: blue\n# user: and?\n", '"name": "look"'):
        assert line in text


def test_an_empty_answer_has_one_empty_block(scripted):
    client = scripted(Worker(lambda request: said("")))
    with client.messages.stream(**ASKED | {"model": ""}) as events:
        assert [block.text for block in events.get_final_message().content] == [""]
    assert client.messages.create(**ASKED | {"model": ""}).content[0].text == ""


def test_a_failure_in_a_stream_is_an_error_of_the_client(scripted):
    from engine.serving.requests import Done, Piece

    events = [Piece("a", 1), Done("error", "", 3, 0, 1, error="the model failed")]
    client = scripted(Worker(lambda request: events))
    with (
        pytest.raises(anthropic.APIStatusError, match="the model failed"),
        client.messages.stream(**ASKED | {"model": ""}) as stream,
    ):
        stream.until_done()
