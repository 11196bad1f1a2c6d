"""A model's own sampling is what transformers' generate would do with its file."""

from __future__ import annotations

import json

import pytest

from engine.errors import InvalidConfig
from engine.sampling import Sampling
from engine.sampling.defaults import model_defaults


def written(folder, text):
    (folder / "generation_config.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, Sampling()),
        ({"temperature": 0.6, "top_p": 0.9}, Sampling()),  # without do_sample it is greedy
        ({"repetition_penalty": 1.05, "eos_token_id": 3}, Sampling(repetition_penalty=1.05)),
        ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
        ({"do_sample": True, "top_k": None}, Sampling(temperature=1.0, top_k=50)),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1},
            Sampling(temperature=0.6, top_k=20, top_p=0.95, min_p=0.1),
        ),
    ],
)
def test_the_file_says_what_transformers_would_do(tmp_path, stated, expected):
    assert model_defaults(written(tmp_path, json.dumps(stated))) == expected


def test_what_is_left_open_is_what_transformers_takes(tmp_path):
    from transformers import GenerationConfig

    usual = GenerationConfig._get_default_generation_params()
    taken = model_defaults(written(tmp_path, '{"do_sample": true}'))
    for name in ("temperature", "top_k", "top_p", "typical_p", "repetition_penalty"):
        assert getattr(taken, name) == usual[name]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"do_sample": true, "top_p": 7}', '{"repetition_penalty": "much"}']
)
def test_a_file_that_cannot_be_is_one_line_that_names_it(tmp_path, text):
    with pytest.raises(InvalidConfig) as caught:
        model_defaults(written(tmp_path, text))
    assert "generation_config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_file_there_are_no_defaults(tmp_path):
    with pytest.raises(InvalidConfig, match="leave --defaults out"):
        model_defaults(tmp_path)
