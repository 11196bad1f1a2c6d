"""`engine generate` with wishes, as users give them."""

from __future__ import annotations

import json
import re
import shutil

import jsonschema
import pytest

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture
def generated(command, tiny_llama):
    """`generated(*options)`: what `engine generate` makes of a prompt."""

    def run(*options, model=tiny_llama, tokens=30):
        given = ("--model", model, "--prompt", "def main(", "--max-tokens", tokens)
        return command("engine", "generate", "--backend", "mlx", *given, *options)

    return run


def test_a_seed_that_was_told_draws_the_same_again(generated):
    first = generated("--temperature", 1, "--top-p", 0.95)
    seed = re.search(r"sampling: temperature 1.0, top_p 0.95, seed (\d+), order", first.err)[1]
    assert generated("--temperature", 1, "--top-p", 0.95, "--seed", seed).out == first.out
    assert generated("--temperature", 1, "--top-p", 0.95, "--seed", 1).out != first.out
    assert "sampling: greedy\n" in generated().err


def test_every_wish_reaches_the_tokens(generated):
    usual = ("--temperature", 1.5, "--seed", 5)
    base = generated(*usual).out
    for wish in (
        ("--top-k", 2),
        ("--top-p", 0.2),
        ("--min-p", 0.5),
        ("--typical-p", 0.2),
        ("--repetition-penalty", 5),
        ("--presence-penalty", 9),
        ("--frequency-penalty", 9),
        ("--logit-bias", "5=50"),
    ):
        result = generated(*usual, *wish)
        assert result.out != base and wish[0][2:].replace("-", "_") in result.err, wish
    several = ("--top-k", 6, "--top-p", 0.7, "--repetition-penalty", 1.5)
    orders = ("transformers", "mlx-lm", "llama.cpp")
    assert len({generated(*usual, *several, "--order", order).out for order in orders}) > 1


def test_text_ends_before_a_stop_string(generated):
    whole = generated().out
    cut = whole[3:5]
    assert generated("--stop", cut).out == whole[: whole.index(cut)] + "\n"


def test_text_ends_at_a_stop_token_by_id_or_text(generated, tiny_llama):
    """Before the first of several, which is counted."""
    from engine import load
    from engine.generate import generate

    model = load(tiny_llama)
    tokenizer = model.tokenizer
    tokens = list(generate(model.decoder, tokenizer.prompt("def main("), 30))
    for token in tokens[2:5]:
        at, text = tokens.index(token), tokenizer.decode([token])
        for named in {str(token), text if tokenizer.encode(text, special=False) == [token] else ""}:
            found = generated("--stop-token", named or token, "--stop-token", 511)
            assert found.out == tokenizer.decode(tokens[:at]) + "\n" != generated().out
            assert f"decode: {at + 1} tokens" in found.err


def test_log_probabilities_are_a_line_a_token_and_fit_a_terminal(generated):
    result = generated("--logprobs", 3, tokens=6)
    lines = [line for line in result.err.splitlines() if re.match(r"  +-\d+\.\d{3}  '", line)]
    assert len(lines) == 6 and all(" of '" in line for line in lines)
    assert max(map(len, lines)) < 100
    assert result.out == generated(tokens=6).out
    assert (
        " of " not in generated("--logprobs", 0, tokens=6).err.split("log-prob")[1].split("sam")[0]
    )


@pytest.mark.parametrize("as_file", [False, True])
def test_json_is_what_the_schema_says(generated, tmp_path, as_file):
    text = json.dumps(SCHEMA)
    if as_file:
        (tmp_path / "schema.json").write_text(text)
        text = tmp_path / "schema.json"
    result = generated("--json-schema", text, tokens=80)
    jsonschema.validate(json.loads(result.out), SCHEMA)
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(generated(tokens=80).out)


def test_text_is_what_the_regular_expression_matches(generated):
    for seed in range(3):
        drawn = generated("--regex", "[a-z]{3,8};", "--temperature", 2, "--seed", seed)
        assert re.fullmatch("[a-z]{3,8};\n", drawn.out)


def test_the_models_own_sampling_is_taken_when_asked_for(generated, tiny_llama, tmp_path):
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    own = {"do_sample": True, "temperature": 1.3, "top_k": 20}
    (model / "generation_config.json").write_text(json.dumps(own))
    result = generated("--defaults", "--seed", 3, model=model)
    assert (
        "sampling: temperature 1.3, top_k 20, seed 3, order transformers (the model" in result.err
    )
    spelled = generated("--temperature", 1.3, "--top-k", 20, "--seed", 3, model=model)
    assert result.out == spelled.out != generated(model=model).out
    over = generated("--defaults", "--seed", 3, "--top-k", 1, model=model)
    assert over.out == generated(model=model).out


def test_through_pytorch_the_same_is_drawn(command, tiny_llama):
    pytest.importorskip("torch")
    given = ("--model", tiny_llama, "--prompt", "def main(", "--max-tokens", 15, "--device", "cpu")
    wish = ("--temperature", 0.8, "--repetition-penalty", 1.2, "--seed", 3, "--regex", "[a-z ]{9,}")
    mlx, torch = (
        command("engine", "generate", "--backend", each, *given, *wish) for each in ("mlx", "torch")
    )
    assert torch.status == 0 and "backend=torch" in torch.err
    assert mlx.out == torch.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--temperature", "1", "--top-p", "0"], "top_p is 0.0"),
        (["--temperature", "1", "--top-p", "2"], "top_p is 2.0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "1", "--order", "vllm"], "'vllm' is not one of transformers"),
        (["--top-p", "0.5"], "--top-p does nothing at temperature 0"),
        (["--logit-bias", "9999=1"], "names token 9999"),
        (["--logit-bias", "x=1"], "'x=1'"),
        (["--logit-bias", "3"], "'3'"),
        (["--seed", "-1"], "seed is -1"),
        (["--regex", "(a"], "unclosed group"),
        (["--json-schema", "{"], "no JSON"),
        (["--json-schema", '{"not": {}}'], 'Unimplemented keys: ["not"]'),
        (["--json-schema", "nowhere.json"], "nowhere.json"),
        (["--json-schema", "{}", "--regex", "a"], "give one"),
        (["--logprobs", "-1"], "logprobs"),
        (["--stop-token", "512"], "stop token 512"),
        (["--stop-token", "def main("], "'def main(' is"),
        (["--stop-token", ""], "'' is 0 tokens"),
        (["--stop-token", "9" * 5000], "tokens: give the id"),
    ],
)
def test_a_wish_that_cannot_be_is_one_line_and_exit_2(generated, options, words):
    result = generated(*options)
    lines = [line for line in result.err.splitlines() if line != "backend: mlx, asked for"]
    assert result.status == 2 and result.out == ""
    assert len(lines) == 1 and words in lines[0]
