"""Tool calls in text, in the three shapes that are common."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.serving.toolcalls import MARKERS, Call, ToolText, split

NAMES = {"look", "go-to"}
OBJECT = '{"name": "look", "arguments": {"at": "sky", "n": [1, null]}}'
LOOK = Call("look", '{"at": "sky", "n": [1, null]}')
GO = Call("go-to", "{}")
GO_OBJECT = '{"name": "go-to", "parameters": {}}'


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        (f"<tool_call>{OBJECT}</tool_call>", "", [LOOK]),
        (f"well\n<tool_call>\n{OBJECT}\n</tool_call>\n", "well\n", [LOOK]),
        (f"<tool_call>{OBJECT}</tool_call>\n<tool_call>{GO_OBJECT}</tool_call>", "", [LOOK, GO]),
        (f"<tool_call>{OBJECT}</tool_call> and so", " and so", [LOOK]),
        (f"<tool_call>{OBJECT}", "", [LOOK]),  # the end token came in place of the closing tag
        (f"[TOOL_CALLS] [{OBJECT}, {GO_OBJECT}]", "", [LOOK, GO]),
        ('[TOOL_CALLS]look[ARGS]{"at": "sky", "n": [1, null]}', "", [LOOK]),
        ("[TOOL_CALLS]go-to{}[TOOL_CALLS]go-to[ARGS]{}", "", [GO, GO]),
        (GO_OBJECT, "", [GO]),
        (f" {GO_OBJECT}; {OBJECT}\n", "", [GO, LOOK]),
        (f"<|python_tag|>{GO_OBJECT}", "", [GO]),
        ('{"name": "go-to", "arguments": "{}"}', "", [GO]),
    ],
)
def test_calls_are_read(text, rest, calls):
    assert split(text, NAMES) == (rest, calls)
    assert split(text, {"other"}) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        "  ",
        '{"name": "look", "parameters": ',
        '{"name": "look", "parameters": {}} is how to call it',
        '{"look": 1}',
        "{}",
        "<tool_call>look</tool_call>",
        '<tool_call>{"name": "look", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": ["look"], "arguments": {}}</tool_call>',
        '<tool_call>{"name": "look", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "look", "arguments": {"a": "\\ud800"}}</tool_call>',
        "[TOOL_CALLS]",
        "[TOOL_CALLS] look at the sky",
        '[TOOL_CALLS][1, "a"]',
        "<|python_tag|>look()",
        "{" * 100_000,
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_what_only_looks_like_a_call_stays_text(text):
    rest, calls = split(text, NAMES)
    assert not calls and rest == text


PARTS = st.one_of(
    st.sampled_from(
        [*MARKERS, OBJECT, GO_OBJECT, "</tool_call>", "look[ARGS]", "{}", ";", "[", "]", " ", "\n"]
    ),
    st.text(max_size=4),
    st.sampled_from([m[:n] for m in MARKERS for n in range(1, len(m))]),
)


@given(st.lists(PARTS, max_size=8), st.data())
def test_pieces_make_no_difference(parts, data):
    text = "".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    tool_text = ToolText(NAMES)
    edges = [0, *cuts, len(text)]
    begin = "".join(tool_text.push(text[a:b]) for a, b in pairwise(edges))
    rest, calls = tool_text.finish()
    assert (begin + rest, calls) == split(text, NAMES)
    if not calls:
        assert begin + rest == text  # nothing is lost
    for call in calls:
        assert call.name in NAMES and isinstance(json.loads(call.arguments), dict)


@given(st.text().filter(lambda text: not any(m[0] in text for m in MARKERS) and "{" not in text))
def test_text_without_markers_is_held_back_only_while_it_is_space(text):
    assert ToolText(NAMES).push(text) == ("" if not text.strip() else text)
