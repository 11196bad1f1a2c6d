"""Quantised models: judged by their own weights put back, what was lost told beside it."""

from __future__ import annotations

import json
import re

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

import harness
from engine.errors import EngineError, UnsupportedFormat
from engine.files import find_model
from engine.layers.packed import pack
from engine.model import load
from engine.weights import read_weights
from engine.weights.quantised import Packing
from harness.checks import chosen
from harness.judge import ask, comparison_of
from harness.memory import size_of
from harness.types import Verdict

NUMBERS = ["blocks", "logits"]
CHECKS = ["weights", *NUMBERS, "head", "greedy"]


def but_for_some(path, module):
    """The head and one projection stay as they were; another is finer than the rest."""
    if path == "lm_head" or path == "model.layers.1.self_attn.o_proj":
        return False
    return {"group_size": 64, "bits": 8} if path.endswith("0.mlp.up_proj") else True


@pytest.fixture(scope="module")
def mixed(quantised_model):
    return quantised_model("llama", "linear", but_for_some)


def judged(comparison, checks) -> Verdict:
    verdict = Verdict("", comparison.candidate.name, "torch", "float32", "cpu")
    ask(comparison, chosen(checks), verdict)
    return verdict


# Right ones pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("candidate", ["engine", "mlx-lm"])
def test_parity_holds_against_the_weights_put_back(candidate, mixed):
    verdict = harness.compare(mixed, candidate, "torch", checks=CHECKS)
    assert [check.verdict for check in verdict.checks] == ["pass"] * len(CHECKS)
    plain = sum(array.size for array in read_weights(find_model(mixed)).values())
    assert verdict.checks[0].measures["parameters"] > 2 * plain  # numbers, not words


@pytest.mark.parametrize("candidate", ["engine", "mlx-lm"])
def test_experts_that_mlx_lm_stacked(candidate, quantised_model):
    """The reference gets them one by one, the router of 8 bits put back like all."""
    folder = quantised_model("qwen3_moe", "plain")
    verdict = harness.compare(folder, candidate, "torch", checks=["weights", "logits"])
    assert verdict.verdict == "pass", [check.reason for check in verdict.checks]


def test_deployment_dtypes(quantised_model):
    """Products of packed matrices are rounded like PyTorch's, and engaged at the dtype."""
    folder = quantised_model("llama", "linear", mode="mxfp4")
    verdict = harness.compare(
        folder, "engine", "torch", "bfloat16", ["weights", "engagement", *NUMBERS]
    )
    assert verdict.verdict == "pass", [check.reason for check in verdict.checks]
    engaged = next(c for c in verdict.checks if c.name == "engagement" and c.dtype == "bfloat16")
    assert engaged.verdict == "pass"


@pytest.mark.parametrize("other", ["engine", "mlx-lm"])
def test_a_quantised_model_is_a_reference_too(other, mixed):
    verdict = harness.compare(mixed, "engine", other, checks=["weights", "logits"])
    assert verdict.verdict == "pass", [check.reason for check in verdict.checks]


# Wrong ones do not --------------------------------------------------------------------------


@pytest.mark.parametrize("candidate", ["engine", "mlx-lm"])
def test_one_wrong_scale_is_found(candidate, mixed):
    """By name where weights are compared, and by the numbers alone."""
    comparison = comparison_of(mixed, candidate, "torch")
    if candidate == "engine":
        module = comparison.candidate.model.decoder.blocks[1].mlp.down
    else:
        module = comparison.candidate.model.layers[1].mlp.down_proj
    scales = np.array(module.scales)
    scales[5, 1] *= 1.5
    module.scales = mx.array(scales)
    verdict = judged(comparison, ["weights", *NUMBERS])
    assert [check.verdict for check in verdict.checks] == ["fail"] * 3
    assert "down" in verdict.first_divergence.message
    wrong = int(re.search(r"(\d+) of 8192 values", verdict.first_divergence.message)[1])
    assert 16 <= wrong <= 32  # of one group; zeros stay zeros
    blocks = verdict.checks[1].divergence
    assert blocks.block == 1
    assert blocks.site.endswith("mlp.down_proj")


def test_settings_of_single_modules_ignored_are_found(mixed):
    """E07: what was to stay as it is gets quantised like the rest."""
    comparison = comparison_of(mixed, "engine", "torch")
    decoder, how = comparison.candidate.model.decoder, Packing(32, 4)
    for path in ("head", "blocks.1.attn.o"):
        whole = decoder.head if path == "head" else decoder.blocks[1].attn.o
        parts = how.pack(whole.weight)
        pack(decoder, {path: how}, mx.float32)
        packed = decoder.head if path == "head" else decoder.blocks[1].attn.o
        for part, array in parts.items():
            packed[part] = array
    verdict = judged(comparison, ["weights", *NUMBERS])
    assert [check.verdict for check in verdict.checks] == ["fail"] * 3
    assert "head.weight" in verdict.checks[0].reason
    assert verdict.checks[1].divergence.block == 1


def test_the_settings_for_all_on_a_finer_module_are_found(mixed):
    """E07 on packed numbers: a module of 8 bits, run by the settings for all, cannot be."""
    module = load(mixed).decoder.blocks[0].mlp.up
    assert module.packing == Packing(64, 8)
    module.packing = Packing(32, 4)
    with pytest.raises(ValueError, match="quantized_matmul"):
        module(mx.ones((1, 64)))


def test_the_loss_would_not_pass_as_rounding(packable_model, quantised_model):
    """The control: 8 bits against the original itself, where the loss does not cancel."""
    decoder = load(quantised_model("llama", "linear", bits=8)).decoder

    def as_candidate(tokens):
        return decoder(mx.array([tokens]))

    original = packable_model("llama", "linear")
    verdict = harness.compare(original, as_candidate, "torch", checks=["logits"])
    assert verdict.verdict == "fail"


# What was lost ------------------------------------------------------------------------------


def test_the_loss_is_told_and_judges_nothing(packable_model, quantised_model, command, tmp_path):
    original = packable_model("llama", "linear")
    lost = {}
    for bits in (2, 8):
        folder, file = quantised_model("llama", "linear", bits=bits), tmp_path / f"{bits}.json"
        result = command(
            "harness", "compare", "--model", folder, "--original", original,
            "--checks", "logits,quantisation", "--json", file,
        )  # fmt: skip
        assert result.status == 0, result.out + result.err
        assert "lost against the original: KL" in result.out
        check = json.loads(file.read_text())["checks"][1]
        assert (check["name"], check["verdict"], check["reported"]) == (
            "quantisation",
            "pass",
            True,
        )
        lost[bits] = check["measures"]
        for key in ("kl", "top1", "perplexity_ratio"):
            assert lost[bits][key]["standard_error"] >= 0
    assert lost[2]["kl"]["mean"] > 100 * lost[8]["kl"]["mean"] > 0
    assert lost[2]["top1"]["mean"] < lost[8]["top1"]["mean"] <= 1
    assert abs(lost[8]["perplexity_ratio"]["mean"] - 1) < 0.05


def test_nothing_is_lost_against_itself(packable_model, tmp_path):
    """The control: an original whose numbers fit 8 bits exactly loses nothing."""
    from engine.convert import convert
    from engine.weights import write_weights
    from engine.weights.plain import plain_weights

    source = packable_model("llama", "linear")
    convert(source, tmp_path / "q", quantise=Packing(32, 8))
    convert(source, tmp_path / "o")
    write_weights(tmp_path / "o/model.safetensors", plain_weights(find_model(tmp_path / "q")))
    verdict = harness.compare(
        tmp_path / "q", "engine", "torch", checks=["quantisation"], original=tmp_path / "o"
    )
    (check,) = verdict.checks
    assert check.measures["top1"] == {"mean": 1.0, "standard_error": 0.0}
    assert check.measures["kl"]["mean"] < 1e-9
    assert verdict.verdict == "inconclusive"  # the loss alone is no parity


def test_where_it_cannot_be_told(packable_model, quantised_model):
    folder, original = quantised_model("llama", "linear"), packable_model("llama", "linear")

    def told(model, source):
        verdict = harness.compare(
            model, "engine", "torch", checks=["weights", "quantisation"], original=source
        )
        assert verdict.checks[0].verdict == verdict.verdict == "pass"
        return [check.reason for check in verdict.checks[1:] if check.verdict == "skip"]

    assert told(folder, None) == ["what quantising lost is told with --original MODEL"]
    assert told(original, original) == ["the model is not quantised"]
    assert told(original, None) == []
    for source, text in ((folder, "quantised itself"), ("tiny-gpt2", "another model")):
        with pytest.raises(EngineError, match=text):
            told(folder, source)


# Around it ----------------------------------------------------------------------------------


def test_streaming_is_refused_in_one_line(mixed):
    with pytest.raises(
        UnsupportedFormat, match="cannot be streamed: its tensors are not"
    ) as caught:
        harness.compare(mixed, "engine", "torch", stream=True)
    assert "\n" not in str(caught.value)


def test_memory_is_told_by_numbers_not_by_words(mixed, packable_model):
    quantised, plain = (
        size_of(find_model(mixed)),
        size_of(find_model(packable_model("llama", "linear"))),
    )
    assert quantised.parameters == plain.parameters
    assert (quantised.block, quantised.table, quantised.longest) == (
        plain.block, plain.table, plain.longest,
    )  # fmt: skip
    assert quantised.stored < plain.stored / 2


def test_packed_modules_of_either_kind_are_unpacked():
    """mlx.nn's and the engine's give the same parameters."""
    from engine.layers.packed import PackedLinear
    from harness.backends._mlx import weights_of

    theirs = nn.Linear(64, 8, bias=False).to_quantized(group_size=32, bits=4)
    ours = PackedLinear((8, 64), Packing(32, 4))
    for part in ("weight", "scales", "biases"):
        ours[part] = theirs[part]
    found = [weights_of(module, "float32") for module in (Holder(ours), Holder(theirs))]
    assert set(found[0]) == set(found[1]) == {"inner.weight"}
    assert mx.array_equal(found[0]["inner.weight"], found[1]["inner.weight"])
    assert found[0]["inner.weight"].shape == (8, 64)


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
