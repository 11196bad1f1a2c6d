"""The rule that makes tiny models, spellings, recipes, waivers, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.atlas import families, names, recipes, run, spelling, tiny
from harness.atlas.families import Family
from harness.atlas.recipes import Recipe
from harness.atlas.rows import CANNOT_LOAD, NEW, OLD, Row
from harness.atlas.variants import PLAIN, VARIANTS
from harness.atlas.waivers import Waiver, Waivers, read_waivers
from harness.atlas.whole import Atlas
from harness.errors import BadOption
from harness.report import atlas as report

BY_RULE = ("cohere2", "granite", "mixtral", "olmo2", "phi3", "qwen2", "starcoder2")


@settings(max_examples=12)
@given(st.sampled_from(BY_RULE), st.sampled_from(sorted(VARIANTS)))
def test_the_rule_is_tiny_and_exposes_faults(family, variant):
    try:
        config = tiny.build(family, VARIANTS[variant], tiny.build(family, VARIANTS[PLAIN]))
        size = sum(_product(shape) for shape in tiny.parameters(config).values())
    except tiny.CannotBuild:
        assert VARIANTS[variant].rotary  # all else fits these families
        return
    assert size < tiny.LARGEST
    assert config.hidden_size**0.5 % 1
    heads, pairs = config.num_attention_heads, config.num_key_value_heads
    assert heads % pairs == 0 and (pairs < heads or variant == "ungrouped")
    assert config.rope_parameters["rope_theta"] != type(config).default_theta


def _product(shape):
    return shape[0] * _product(shape[1:]) if shape else 1


def test_there_are_layers_of_every_kind_of_the_full_model():
    config = tiny.build("cohere2", VARIANTS[PLAIN])
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.num_hidden_layers == 4  # three are not enough


def test_what_is_too_large_is_refused_before_it_is_in_memory():
    from transformers import LlamaConfig

    with pytest.raises(tiny.CannotBuild, match=r"parameters, model.* has the shape"):
        tiny.parameters(LlamaConfig())


def test_a_variant_that_changes_nothing_is_none():
    found = dict(tiny.tiny_configs("qwen2"))
    assert {PLAIN, "tying", "window", "yarn"} <= set(found)
    assert not {"bias", "width", "router"} & set(found)  # qwen2 has no such setting
    assert found["tying"].tie_word_embeddings is not found[PLAIN].tie_word_embeddings


@pytest.mark.parametrize("family", ["cohere2", "olmo2", "starcoder2"])
def test_both_spellings_mean_the_same(family):
    new = tiny.written(tiny.build(family, VARIANTS["yarn"]))
    old = spelling.old(new, Recipe())
    assert old and "rope_parameters" not in old and old["rope_scaling"]["rope_type"] == "yarn"
    assert spelling.same_meaning(new, old)
    assert not spelling.same_meaning(new, {**old, "rope_theta": 1234.0})


def test_a_family_without_rotary_embedding_is_spelled_one_way():
    new = tiny.written(tiny.build("gpt2", VARIANTS[PLAIN]))
    assert spelling.old(new, Recipe()) is None


def test_tensors_get_the_names_of_the_hub():
    experts = {
        f"a.experts.{e}.{part}_proj.weight": np.full((2, 3), 10 * e + n)
        for e in range(11)
        for n, part in enumerate(("gate", "up", "down"))
    }
    recipe = Recipe(names=(("^transformer\\.", ""),), stacked=True)
    found = names.renamed({"transformer.h": 1, **experts}, recipe)
    assert set(found) == {"h", "a.experts.gate_up_proj", "a.experts.down_proj"}
    assert found["a.experts.gate_up_proj"].shape == (11, 4, 3)  # (E, 2F, C)
    assert found["a.experts.gate_up_proj"][10, :, 0].tolist() == [100, 100, 101, 101]
    assert found["a.experts.down_proj"][:, 0, 0].tolist() == [10 * e + 2 for e in range(11)]
    assert names.renamed({"transformer.h": 1}, Recipe()) == {"transformer.h": 1}


def test_longrope_is_for_families_whose_recipe_has_factors():
    scaled = dict(tiny.tiny_configs("phi3"))["longrope"].rope_parameters
    assert scaled["rope_type"] == "longrope" and len(scaled["long_factor"]) == 12
    with pytest.raises(tiny.CannotBuild, match="no factors"):
        tiny.build("qwen2", VARIANTS["longrope"], tiny.build("qwen2", VARIANTS[PLAIN]))


def test_a_rotary_base_of_a_recipe_stays():
    rope = tiny.build("olmo3", VARIANTS[PLAIN]).rope_parameters
    assert {part["rope_theta"] for part in rope.values()} == {500000.0}


def test_a_family_of_other_names_alone_has_an_old_spelling():
    new = tiny.written(tiny.build("qwen3_5_moe", VARIANTS[PLAIN]))
    assert spelling.old(new, recipes.recipe_of("qwen3_5_moe")) == new
    assert spelling.old(new, Recipe(without=("old",))) is None


def test_every_family_is_attempted_or_left_out_with_a_reason():
    found = {family.name: family.left_out for family in families.families("mlx-lm")}
    assert sum(reason is None for reason in found.values()) >= 80
    assert found["llama"] is None and found["mistral"] is None  # the second by another's file
    assert found["solar_open"] is None  # its model is imported from another's file
    assert found["bloom"] == "mlx-lm does not have it"
    assert "transformers has no" in found["plamo2"]
    assert set(recipes.read_recipes()) <= set(found)
    with pytest.raises(BadOption, match="lists no families"):
        families.families("torch")


@pytest.mark.parametrize(
    ("text", "said"), [("[a]\nsetings = 1\nwhy = 'x'", "'setings'"), ("[a]\nsettings = {}", "why")]
)
def test_a_recipe_that_says_nothing_is_refused(tmp_path, text, said):
    file = tmp_path / "recipes.toml"
    file.write_text(text)
    with pytest.raises(BadOption, match=said):
        recipes.read_recipes(file)


FAILS = Row("llama", "window", OLD, "fail", check="blocks", diagnosis="a mask or window", seconds=1)
KNOWN = Waiver(
    title="no windows", candidate="mlx-lm", version="1", families=("llama",), match="mask",
    reason="it has none", where="llama.py", variants=("win*",), spellings=(OLD,),
)  # fmt: skip


def test_a_waiver_fits_what_it_says_and_nothing_else():
    assert KNOWN.fits(FAILS)
    others = [
        {"family": "qwen2"}, {"variant": PLAIN}, {"spelling": NEW}, {"outcome": "pass"},
        {"diagnosis": "an epsilon"},
    ]  # fmt: skip
    for change in others:
        assert not KNOWN.fits(Row(**{**FAILS.document(), **change}))


def test_a_waiver_that_matches_nothing_is_stale():
    passes = Row("llama", "window", OLD, "pass")
    assert Waivers((KNOWN,)).stale([FAILS]) == []
    assert Waivers((KNOWN,)).stale([passes]) == [(KNOWN, "llama")]
    assert Waivers((KNOWN,)).stale([Row("qwen2", PLAIN, OLD, "pass")]) == []  # not judged


def test_waivers_are_for_one_version(tmp_path):
    file = tmp_path / "waivers.toml"
    lines = {"title": "t", "candidate": "mlx-lm", "version": "1", "match": "x", "reason": "r",
             "where": "w"}  # fmt: skip
    text = "\n".join(f'{key} = "{value}"' for key, value in lines.items())
    file.write_text(f'[[waiver]]\nfamilies = ["llama"]\n{text}\n')
    assert len(read_waivers("mlx-lm", file, "1").entries) == 1
    newer = read_waivers("mlx-lm", file, "2")
    assert (newer.entries, newer.elsewhere) == ((), 1)
    file.write_text(file.read_text().replace("reason", "reasons"))
    with pytest.raises(BadOption, match=r"waiver 1 .*'reasons'"):
        read_waivers("mlx-lm", file, "1")


def test_the_waivers_that_are_shipped_can_be_read():
    known = {family.name for family in families.families("mlx-lm")}
    for waiver in read_waivers("mlx-lm").entries:
        assert set(waiver.families) <= known
        assert waiver.reason.strip().endswith(".") and ".py" in waiver.where
        assert waiver.confirmed == "" or waiver.confirmed.strip().endswith(".")


def test_what_confirms_a_finding_is_shown():
    seen = replace(KNOWN, confirmed="with <the> window it passes.")
    atlas = Atlas("mlx-lm", [Family("llama")], [FAILS], Waivers((seen,)))
    assert b"- Confirmed: with <the> window it passes." in report.as_markdown(atlas)
    assert b"Confirmed: with &lt;the&gt; window it passes." in report.FORMATS["html"](atlas)
    without = replace(atlas, waivers=Waivers((KNOWN,)))
    assert b"Confirmed" not in report.as_markdown(without) + report.FORMATS["html"](without)


def test_a_family_judged(monkeypatch):
    monkeypatch.setattr(tiny, "VARIANTS", {PLAIN: VARIANTS[PLAIN]})
    task = {"family": "granite", "candidate": "mlx-lm", "keep": None}
    rows = {(row["variant"], row["spelling"]): row for row in run.judge_family(task)}
    assert rows[PLAIN, OLD]["outcome"] == "pass"
    assert rows[PLAIN, NEW]["outcome"] == CANNOT_LOAD
    assert "rope_theta" in rows[PLAIN, NEW]["reason"]


def test_results_of_another_recipe_are_not_taken(monkeypatch):
    known = families.chosen("mlx-lm", ["gpt2"])
    recipe = recipes.recipe_of("gpt2")
    tasks = []
    for other in (recipe, replace(recipe, why="other words"), replace(recipe, also={"n_ctx": 8})):
        monkeypatch.setattr(run, "recipe_of", lambda family, other=other: other)
        tasks += run.plan(known, "mlx-lm")
    assert tasks[0] == tasks[1] != tasks[2]


def test_a_family_that_takes_too_much_is_a_row():
    (row,) = run.stopped({"family": "llama"}, "it took more than 5 s")
    assert (row["outcome"], row["reason"]) == ("error", "stopped: it took more than 5 s")


def test_bad_input_is_refused_in_one_line(command):
    result = command("harness", "atlas", "--families", "lama")
    assert result.status == 2 and "'lama'" in result.err
    result = command("harness", "atlas", "--families", "llama", "--memory", "0")
    assert result.status == 2 and "--memory" in result.err


def test_the_command_writes_every_format(command, tmp_path):
    """On results that are there already, so that nothing is judged."""
    known = families.chosen("mlx-lm", ["llama"])
    (task,) = run.plan(known, "mlx-lm")
    row = Row("llama", PLAIN, OLD, "fail", check="blocks", diagnosis="unheard of").document()
    done = tmp_path / "done.jsonl"
    done.write_text(json.dumps({"task": task, "result": [row]}) + "\n")
    names = {"--markdown": "a.md", "--json": "a.json", "--html": "a.html"}
    options = [text for option, name in names.items() for text in (option, tmp_path / name)]
    result = command("harness", "atlas", "--families", "llama", "--resume", done, *options)
    assert result.status == 1  # a failure that nobody knows
    assert "fail: llama/plain/old: blocks: unheard of" in result.out
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["schema"] == "harness.atlas/1" and document["rows"][0]["finding"] is None
    assert "unheard of" in (tmp_path / "a.md").read_text()
    assert "unheard of" in (tmp_path / "a.html").read_text()
