"""The text of an answer: without end tokens, up to a stop string, whatever the tokens are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.answer import Answer
from engine.files import find_model
from engine.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(find_model("tiny-llama"))
(END,) = TOKENIZER.eos_ids


def told(ids, stop=(), **more):
    answer, text = Answer(TOKENIZER, stop, **more), ""
    for id in ids:
        text += answer.push(id)
        if answer.stopped_by is not None:
            break
    return text + answer.finish(), answer.stopped_by


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text, stop):
    ids = TOKENIZER.encode(text, special=False)
    said, by = told(ids, stop)
    whole = TOKENIZER.decode(ids)
    ends = {s: whole.find(s) + len(s) for s in stop if s in whole}
    if ends:
        first = min(ends.values())
        assert ends[by] == first and said == whole[: first - len(by)]
    else:
        assert (said, by) == (whole, None)


def test_an_end_token_ends_it_and_is_no_text():
    ids = TOKENIZER.encode("ab", special=False)
    assert told([*ids, END, *ids]) == ("ab", END)


def test_what_a_stop_string_held_back_is_given_at_the_end():
    ids = TOKENIZER.encode("one tw", special=False)
    assert told(ids, ["two"]) == ("one tw", None)


@pytest.mark.parametrize(("skip", "text"), [(False, "<|begin|>a"), (True, "a")])
def test_special_tokens_are_text_unless_left_out(skip, text):
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode("a", special=False)]
    assert told(ids, skip_special=skip) == (text, None)
