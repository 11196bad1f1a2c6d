"""`engine generate` and `engine convert` as users run them; the other commands have their own."""

from __future__ import annotations

import re

import pytest

MLX = ("--backend", "mlx")


def test_generate_streams_text_and_prints_its_figures(command, golden_model):
    result = command(
        *("engine", "generate", "--model", golden_model),
        *("--prompt", "def main(", "--max-tokens", 10, *MLX),
    )
    assert result.status == 0, result.err
    assert result.out.strip()
    assert re.search(r"prompt: \d+ tokens, [\d.]+ tokens/s", result.err)
    assert re.search(r"decode: \d+ tokens, [\d.]+ tokens/s", result.err)
    assert re.search(r"peak memory: [\d.]+ MiB", result.err)
    assert re.search(r"backend=mlx device=\w+", result.err)


def test_generate_is_the_same_twice(command, tiny_llama):
    arguments = ("engine", "generate", "--model", tiny_llama, "--prompt", "import ", *MLX)
    assert command(*arguments).out == command(*arguments).out


def test_convert_there_and_back_generates_the_same(command, golden_model, tmp_path):
    npz, back = tmp_path / "a" / "model.npz", tmp_path / "b" / "model.safetensors"
    assert command("engine", "convert", "--model", golden_model, "--out", npz).status == 0
    assert command("engine", "convert", "--model", npz, "--out", back).status == 0
    texts = {
        command(
            "engine", "generate", "--model", m, "--prompt", "import ", "--max-tokens", 20, *MLX
        ).out
        for m in (golden_model, npz, back)
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere", "--prompt", "x"], "'nowhere'"),
        (["--model", "tiny-llama", "--prompt", ""], "--prompt is empty"),
        (["--model", "tiny-llama", "--prompt", "x", "--dtype", "int3"], "'int3'"),
        (["--model", "tiny-llama", "--prompt", "x", "--device", "tpu"], "'tpu'"),
        (["--model", "tiny-llama", "--prompt", "x", "--max-tokens", "0"], "max-tokens"),
        (["--prompt", "x"], "--model"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(command, arguments, words):
    result = command("engine", "generate", *arguments)
    assert result.status == 2 and words in result.err
    assert len(result.err.splitlines()) == 1
