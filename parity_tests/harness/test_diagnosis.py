"""From the pattern of what failed to a sentence: one made-up verdict per row of METHOD.md."""

from __future__ import annotations

import math

import pytest

from harness.diagnosis import diagnose
from harness.types import FAIL, ISOLATED, LOGITS, PASS, PROPAGATED, CheckResult, Site, SiteDiff
from harness.types import Verdict as Whole

EMBEDDING = Site("embedding", None, "", "model.embed_tokens")
NORM = Site("norm", None, "", "model.norm")


def block(k):
    return Site("block", k, "", f"model.layers.{k}")


def verdict(*off, checks=("blocks",), blocks=4, tokens=None, ratio=50.0):
    """A verdict on a model of some blocks where (site, mode) pairs in `off` fail."""
    sites = [EMBEDDING, *map(block, range(blocks)), NORM, LOGITS]
    diffs = [
        SiteDiff(
            site, mode, "random", "float32", 1e-5, 1e-7,
            ratio if (site, mode) in off else 1.0, 4.0,
            FAIL if (site, mode) in off else PASS, None,
            tokens if (site, mode) in off else None,
        )
        for site in sites for mode in (ISOLATED, PROPAGATED)
    ]  # fmt: skip
    results = [CheckResult(name, FAIL, f"{name} is off", dtype="float32") for name in checks]
    return Whole("m", "engine", "torch", "float32", "cpu", results, diffs)


def test_nothing_failed():
    assert diagnose(verdict(checks=())) is None


@pytest.mark.parametrize(
    ("off", "more", "words"),
    [
        ([(block(2), ISOLATED)], {}, "block 2 is off on the reference's own input"),
        ([(block(1), ISOLATED), (block(3), ISOLATED)], {}, "blocks 1, 3 are off"),
        ([(block(k), ISOLATED) for k in range(4)], {}, "every block is off alike"),
        ([(EMBEDDING, PROPAGATED), (block(0), PROPAGATED)], {}, "what enters block 0 is off"),
        ([(block(1), ISOLATED)], {"tokens": 8}, "right up to token 8 and off from there"),
        ([(NORM, ISOLATED)], {"checks": ("logits",)}, "last norm"),
        ([(LOGITS, ISOLATED)], {"checks": ("logits",)}, "head, tied weights, cap or scale"),
        ([], {"checks": ("head",)}, "blocks are clean and logits are not"),
        ([], {"checks": ("cache",)}, "wrong in pieces"),
        ([], {"checks": ("batch",)}, "wrong in a batch"),
        ([], {"checks": ("repeat",)}, "another answer when asked again"),
        ([], {"checks": ("greedy",)}, "other tokens when it generates"),
        ([], {"checks": ("tokens",)}, "its tokenizer does not: tokens is off"),
        ([], {"checks": ("weights",)}, "a parameter is not the reference's"),
        ([(block(3), PROPAGATED)], {}, "errors grow on the way"),
        ([(block(1), ISOLATED)], {"ratio": math.inf}, "model.layers.1 is not finite"),
        ([], {"checks": ("logits",), "blocks": 0}, "shows no blocks"),
    ],
)
def test_a_pattern_has_its_sentence(off, more, words):
    assert words in diagnose(verdict(*off, **more))


def test_the_evidence_stands_in_the_sentence():
    assert "50 times the noise" in diagnose(verdict((block(2), ISOLATED)))


def test_only_the_first_rung_that_failed_is_looked_at():
    found = verdict((block(2), ISOLATED))
    found.checks.append(CheckResult("cache", FAIL, "cache is off", dtype="bfloat16"))
    assert "block 2" in diagnose(found)
