"""Framing of server-sent events, read back by a reader written from the standard."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from engine.serving.sse import DONE, event, plain

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


def read(data: bytes) -> list[tuple[str, str]]:
    """(name, data) of each event: https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    text = data.decode().replace("\r\n", "\n").replace("\r", "\n")
    found, name, lines = [], "message", []
    for line in text.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if lines:
                found.append((name, "\n".join(lines)))
            name, lines = "message", []
        elif field == "event":
            name = value
        elif field == "data":
            lines.append(value)
    return found


@given(st.lists(JSON, max_size=4))
def test_json_comes_back_in_as_many_events(values):
    data = b"".join(event(value, "some").encode() for value in values)
    assert [(name, json.loads(text)) for name, text in read(data)] == [("some", v) for v in values]
    assert all(len(event(v).encode().splitlines()) == 2 for v in values)  # one line each


@given(st.lists(TEXT.filter(lambda text: "\r" not in text), min_size=1, max_size=4))
def test_plain_text_comes_back(texts):
    data = b"".join(plain(text).encode() for text in texts)
    assert [text for _, text in read(data)] == texts


def test_done_is_a_word_of_its_own():
    assert read(DONE.encode()) == [("message", "[DONE]")]
    assert read(event("[DONE]").encode()) != [("message", "[DONE]")]
