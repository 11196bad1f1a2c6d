"""The search finds a turn, asks little, and passes over what cannot be told."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from harness.bisect.search import search

# What each release between the ends answers.
HISTORIES = st.lists(st.sampled_from([True, False, None]), max_size=40)


def asked(between):
    history = [False, *between, True]
    questions = []

    def test(i):
        assert 0 < i < len(history) - 1, "both ends are known"
        questions.append(i)
        return history[i]

    return history, search(len(history), test), questions


@given(HISTORIES)
def test_what_is_found_is_a_turn_however_often_there_is_one(between):
    history, (low, high), questions = asked(between)
    assert history[low] is False and history[high] is True and low < high
    assert all(answer is None for answer in history[low + 1 : high])
    assert len(questions) == len(set(questions))


@given(st.integers(0, 60), st.integers(0, 60))
def test_one_turn_is_found_with_a_logarithm_of_questions(same, moved):
    _, found, questions = asked([False] * same + [True] * moved)
    assert found == (same, same + 1)
    assert len(questions) <= math.ceil(math.log2(same + moved + 1))


@given(HISTORIES)
def test_a_silent_release_costs_one_question(between):
    _, _, questions = asked(between)
    loud = sum(answer is not None for answer in between)
    silent = len(between) - loud
    assert len(questions) <= math.ceil(math.log2(len(between) + 1)) + silent


def test_a_silent_range_is_given_as_a_range():
    assert asked([False, None, None, None, True])[1] == (1, 5)
