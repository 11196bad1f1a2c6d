"""`--kv-bits` as users give it."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import httpx2
import pytest

TEMPLATES = Path(__file__).parents[2] / "templates"


@pytest.fixture(scope="module")
def packable(random_model, tmp_path_factory):
    """A model whose heads make whole groups, with tiny-llama's tokenizer."""
    from engine.files import find_model

    made = random_model("llama", "llama3", head_dim=64, vocab_size=512)
    folder = shutil.copytree(made, tmp_path_factory.mktemp("packable") / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(find_model("tiny-llama").folder / name, folder)
    shutil.copy(TEMPLATES / "chatml.jinja", folder / "chat_template.jinja")
    return folder


@pytest.fixture
def ran(command, packable):
    """`ran(name, *options)`: an engine command on that model, on MLX."""
    return lambda name, *given: command(
        "engine", name, "--model", packable, "--backend", "mlx", *given
    )


def test_bits_reach_the_cache(ran):
    given = ("generate", "--prompt", "def main(", "--max-tokens", 40)
    plain, eight, four = (ran(*given, *bits) for bits in ((), ("--kv-bits", 8), ("--kv-bits", 4)))
    assert plain.status == eight.status == four.status == 0
    assert "keys and values: 8 bits, groups of 64\n" in eight.err
    assert "keys and values" not in plain.err
    assert len({plain.out, four.out}) == 2, "4 bits change what such a model says"
    coarse = ran(*given, "--kv-bits", 4, "--kv-group-size", 32)
    assert "keys and values: 4 bits, groups of 32\n" in coarse.err


def test_bench_and_chat_take_them_as_well(ran, monkeypatch):
    options = ("--prompt-tokens", 8, "--tokens", 3, "--runs", 1, "--kv-bits", 8)
    assert re.search(r"prefill +\d", ran("bench", *options).out)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    told = ran("chat", "--max-tokens", 3, "--kv-bits", 8)
    assert told.status == 0, told.err


def test_a_server_keeps_them_packed(packable, ran):
    pytest.importorskip("fastapi")
    from parity_tests.engine.serving.conftest import serving

    given = ("--model", packable, "--kv-bits", 4)
    body = {"prompt": "def main(", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    with serving(*given) as process:
        answer = httpx2.post(process.url + "/v1/completions", json=body, trust_env=False)
        process.process.terminate()
        err = process.process.stderr.read()
    assert "keys and values: 4 bits, groups of 64\n" in err
    options = ("--prompt", "def main(", "--max-tokens", 40, "--kv-bits", 4)
    assert answer.json()["choices"][0]["text"] + "\n" == ran("generate", *options).out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kv-bits", 7), "--kv-bits 7"),
        (("--kv-bits", 8, "--kv-group-size", 48), "choose 64 or 32"),
        (("--kv-group-size", 64), "add --kv-bits 8"),
        (("--kv-bits", 8, "--backend", "torch"), "--kv-bits and --kv-group-size are MLX's"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_2(ran, options, words):
    result = ran("generate", "--prompt", "a", *options)
    *_, line = result.err.splitlines()
    assert result.status == 2 and result.out == "" and words in line
