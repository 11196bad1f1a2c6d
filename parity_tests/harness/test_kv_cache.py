"""A packed cache is judged by itself, the rest of the engine without it; its loss is told."""

from __future__ import annotations

import pytest

import harness
from engine.cache import Cache
from engine.errors import EngineError, InvalidRequest

CHECKS = ["logits", "kv_cache", "kv_loss"]
PACKABLE = ("llama", "llama3", {"head_dim": 64})


@pytest.fixture(scope="module")
def model(random_model):
    family, variant, changes = PACKABLE
    return random_model(family, variant, **changes)


def judged(model, candidate: str, checks=CHECKS):
    verdict = harness.compare(model, candidate, "torch", checks=checks)
    return verdict, {check.name: check for check in verdict.checks}


def test_a_loss_is_told_and_does_not_fail_parity(model):
    found = {bits: judged(model, f"engine:kv-bits={bits}") for bits in (8, 4)}
    for verdict, checks in found.values():
        assert verdict.verdict == "pass"
        assert [check.reported for check in checks.values()] == [False, False, True]
        assert 0.5 < checks["kv_cache"].measures["steps"] <= 1
        assert "lost against a plain cache: KL" in checks["kv_loss"].reason
    kl = {bits: checks["kv_loss"].measures["kl"] for bits, (_, checks) in found.items()}
    assert 0 < kl[8]["mean"] < kl[4]["mean"] / 10
    plain, checks = judged(model, "engine")
    assert plain.verdict == "pass" and list(checks) == ["logits"]


def test_the_compiled_step_loses_what_a_whole_pass_does(model):
    kl = [
        judged(model, f"engine:{way}kv-bits=4,kv-group-size=32", ["kv_loss"])[1]["kv_loss"]
        for way in ("", "steps,")
    ]
    whole, stepped = (check.measures["kl"]["mean"] for check in kl)
    assert stepped == pytest.approx(whole, rel=0.02)


def without_biases(parts):
    return [part if i % 3 < 2 else part * 0 for i, part in enumerate(parts)]


def with_values_scales(parts):
    weight, _, biases, values, scales, rest = parts
    return [weight, scales, biases, values, scales, rest]


def in_each_others_place(parts):
    return [part[:, :, ::-1] for part in parts]


@pytest.mark.parametrize("broken", [without_biases, with_values_scales, in_each_others_place])
@pytest.mark.parametrize("way", ["", "steps,"])
def test_a_cache_that_unpacks_wrongly_is_found(monkeypatch, model, way, broken):
    append = Cache.append

    def wrong(self, keys, values):
        found = append(self, keys, values)
        return broken(found) if self.packing else found

    monkeypatch.setattr(Cache, "append", wrong)
    asked = ["kv_cache"] if way else ["logits", "kv_cache"]
    verdict, checks = judged(model, f"engine:{way}kv-bits=8", asked)
    assert [checks[name].verdict for name in asked] == ["pass", "fail"][-len(asked) :]
    assert verdict.first_divergence.block == 0
    assert "block 0: keys come back" in verdict.first_divergence.message


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("kv-bits", "'kv-bits' is none of steps, kv-bits=8 and kv-group-size=64"),
        ("kv-bits=8,stops", "'stops' is none of"),
        ("kv-bits=x", "'kv-bits=x' is none of"),
        ("kv-bits=3", "--kv-bits 3: keys and values are packed in 8 or 4 bits"),
        ("kv-group-size=64", "packs nothing without --kv-bits"),
    ],
)
def test_wishes_that_do_not_exist(model, argument, words):
    with pytest.raises(EngineError, match=words):
        harness.compare(model, f"engine:{argument}", "torch", checks=["logits"])


def test_a_model_whose_heads_make_no_groups(tiny_llama):
    with pytest.raises(InvalidRequest, match="are 24 wide"):
        harness.compare(tiny_llama, "engine:kv-bits=8", "torch", checks=["logits"])
