"""Faults of the catalogue, each planted once: found, placed, and equivalents left in peace.

`harness faults run` plants all of them, on every model; here a part of them have the first model
that has a place for them, and one prompt of a kind has to do. Clean runs are the controls: a
harness that always fails would fail here.
"""

from __future__ import annotations

import pytest

from harness.faults import all_faults
from harness.report.scores import misses
from harness.scoreboard import board, run_once

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]  # a few minutes for all of them
MODELS = (
    "tiny-llama",
    "tiny-gemma3",
    "qwen3/window",
    "gpt2/plain",
    "dots1/plain",
    "qwen3_moe/sparse",
    "gemma2/softcaps",
    "llama/llama3",
    "gpt2/untied",
    "mixtral/window",
    "olmo3/yarn",
)
EVERY = {"engine": 10, "mlx-lm": 12}  # one in so many: the rest is the full run's


@pytest.fixture(scope="module", params=EVERY)
def scores(request):
    names = sorted(all_faults())[:: EVERY[request.param]]
    found = list(run_once(MODELS, request.param, names))
    return request.param, names, found


def test_every_fault_is_found_and_no_alarm_is_false(scores):
    _, _, found = scores
    assert misses(found) == []
    counts = board(found)
    assert counts.clean_quiet[0] == counts.clean_quiet[1]


def test_the_block_and_the_module_are_named(scores):
    _, _, found = scores
    counts = board(found)
    for (right, of), share in ((counts.block, 0.98), (counts.module, 0.9)):
        assert of > 10 and of - right <= max(1, (1 - share) * of)  # one of few is no share


def test_every_fault_has_a_place_in_some_model(scores):
    candidate, names, found = scores
    missing = set(names) - {score["fault"] for score in found}
    if candidate == "engine":
        assert missing == set()
    else:  # mlx-lm lacks windows, batches or places for some
        assert len(missing) < len(names) / 3
