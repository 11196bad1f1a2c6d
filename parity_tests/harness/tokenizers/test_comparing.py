"""Two tokenizers asked the same: what differs is found, counted, made small and shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tokenizer import Tokenizer, load_tokenizer
from harness.tokenizers import compare, engine_side
from harness.tokenizers.comparing import upper_bound
from harness.tokenizers.corpus import CONVERSATIONS, WRITTEN, fuzz, walks
from harness.tokenizers.shrink import shrink
from harness.tokenizers.sides import Encoded, Side
from parity_tests.tokenizers import files_of, trained, write_kind

CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def tokenizer(path, kind: str = "many_added") -> Tokenizer:
    files = write_kind(path, kind)
    (path / "chat_template.jinja").write_text(CHATML)
    return load_tokenizer(files)


def answers(side: Side, other: Side, count: int = 60):
    return {answer.question: answer for answer in compare(side, other, count).answers}


class TestCompare:
    def test_a_tokenizer_equals_itself(self, tmp_path):
        side = engine_side(tokenizer(tmp_path))
        findings = compare(side, side, 60)
        assert {answer.verdict for answer in findings.answers} == {"pass"}
        assert findings.first is None
        assert [answer.rate for answer in findings.answers if answer.question == "ids"] == [0.05]
        assert [(s.special, s.source, s.bos) for s in findings.states] == [
            (True, "raw", 1), (True, "template", 1), (True, "template", 1),
            (False, "raw", 0), (False, "template", 0), (False, "template", 0),
        ]  # fmt: skip

    def test_every_part_is_asked(self, tmp_path):
        """Each question is failed by a side in which that part alone is wrong."""
        right = engine_side(tokenizer(tmp_path))
        assert right.encode and right.decode and right.stream and right.render and right.facts
        encode, stream, decode, show = right.encode, right.stream, right.decode, right.render

        def no_digits(text: str, special: bool) -> Encoded:
            return encode(text.replace("7", "8"), special)

        def shifted(text: str, special: bool) -> Encoded:
            found = encode(text, special)
            return replace(found, offsets=tuple((a, b + 1) for a, b in found.offsets or ()))

        wrong = {
            "ids": replace(right, encode=no_digits),
            "offsets": replace(right, encode=shifted),
            "count": replace(right, count=lambda text: len(text)),
            "decode": replace(right, decode=lambda ids, skip: decode(ids, skip).lower()),
            "streaming": replace(right, stream=lambda ids, skip: stream(ids, skip).lstrip()),
            "template": replace(right, render=lambda c, prompt: show(c, prompt).strip()),
            "special ids": replace(right, facts={**right.facts, "eos_ids": [1, 2]}),
            "vocabulary": replace(right, special=frozenset()),
            "states": replace(right, encode=lambda text, special: encode(text, True)),
        }
        for question, side in wrong.items():
            found = answers(right, side, 10)[question]
            assert found.verdict == "fail", question
            assert found.differences > 0 and found.smallest is not None
            if question == "ids":
                assert found.smallest.input == "'7'"

    def test_what_a_side_does_not_show_is_not_asked(self, tmp_path):
        right = engine_side(tokenizer(tmp_path))
        found = answers(right, replace(right, decode=None, render=None, facts=None))
        assert {n for n, a in found.items() if a.verdict == "skip"} == {
            "special ids", "round trip", "decode", "template", "chat"
        }  # fmt: skip
        assert found["decode"].reason == "engine shows no decode"

    def test_that_both_refuse_is_no_difference(self, tmp_path):
        right = engine_side(tokenizer(tmp_path))

        def refuses(text: str, special: bool) -> Encoded:
            raise ValueError

        side = replace(right, encode=lambda t, s: refuses(t, s) if "7" in t else right.encode(t, s))
        assert answers(side, side)["ids"].verdict == "pass"
        assert answers(right, side)["ids"].smallest.actual == "(raised: ValueError: ValueError)"


class TestShrink:
    @given(st.text("abc", max_size=8), st.text("abc", max_size=8))
    def test_what_matters_is_left(self, before, after):
        assert shrink(f"{before}xay{after}", lambda t: "x" in t and "y" in t, "a") == "xy"

    def test_ids(self):
        assert shrink((1, 2, 3, 4, 5), lambda ids: 3 in ids, (0,)) == (3,)

    def test_rest_becomes_simple(self):
        assert shrink("héy", lambda t: len(t) > 2, "a") == "aaa"


class TestCorpus:
    def test_random_texts_are_seeded_and_can_be_encoded(self):
        drawn = list(fuzz(300, 7, ["argument", " the"], ["<a>", "<eos>"]))
        assert drawn == list(fuzz(300, 7, ["argument", " the"], ["<a>", "<eos>"]))
        assert drawn[:10] != list(fuzz(10, 8, ["argument", " the"], ["<a>", "<eos>"]))
        assert len(set(drawn)) > 285
        assert all(c < "\ud800" or c > "\udfff" for text in drawn for c in text)
        planes = {ord(c) >> 16 for text in drawn for c in text}
        assert planes >= {0, 1, 2} and any(plane > 2 for plane in planes)

    def test_walks_hold_special_ids(self):
        drawn = list(walks(200, 0, range(10, 50), [3]))
        assert {id for walk in drawn for id in walk} == {3, *range(10, 50)}

    def test_everything_has_a_reason(self):
        for each in (*WRITTEN, *CONVERSATIONS):
            assert each.name and each.reason
        assert len({each.name for each in WRITTEN}) == len(WRITTEN)


@pytest.mark.parametrize(("differences", "asked", "bound"), [(0, 1000, 0.003), (0, 0, None)])
def test_rule_of_three(differences, asked, bound):
    assert upper_bound(differences, asked) == bound
    assert bound is None or upper_bound(4, asked) > 4 / asked


class TestCommand:
    @pytest.fixture
    def model(self, tmp_path):
        pytest.importorskip("transformers")
        tokenizer(tmp_path)
        return tmp_path

    def test_parity(self, command, model, tmp_path):
        out = tmp_path / "found.json"
        result = command("harness", "tokenizer", "--model", model, "--fuzz", 50, "--json", out)
        assert result.status == 0, result.err
        assert "PASS: parity holds" in result.out and "below 6.00% at 95 %" in result.out
        document = json.loads(out.read_text())
        assert document["schema"] == "harness.tokenizer/1"
        assert (document["verdict"], document["error"]) == ("pass", None)
        assert len(document["states"]) == 6

    def test_a_difference_is_shown_small_and_escaped(self, command, model, tmp_path, monkeypatch):
        import engine.tokenizer.tokenizer as module

        encode = module.Tokenizer.encode

        def wrong(self, text, *, special=True):
            return encode(self, text.replace("é", "e"), special=special)

        monkeypatch.setattr(module.Tokenizer, "encode", wrong)
        out = tmp_path / "found.json"
        result = command("harness", "tokenizer", "--model", model, "--fuzz", 20, "--json", out)
        assert result.status == 1
        assert "FAIL" in result.out and "ids, of '\\xe9'" in result.out
        assert json.loads(out.read_text())["verdict"] == "fail"

    def test_errors_are_one_line_and_status_2(self, command, model, tmp_path):
        out = tmp_path / "found.json"
        common = ("harness", "tokenizer", "--model")
        for arguments, said in [
            ((model, "--candidate", "gguf"), "'gguf': there are engine, mlx-lm"),
            ((model, "--fuzz", "-1"), "--fuzz -1"),
            (("/nowhere/model",), "/nowhere/model"),
            ((model, "--json", "/nowhere/x.json"), "the folder /nowhere does not exist"),
        ]:
            result = command(*common, *arguments)
            assert result.status == 2 and said in result.err
            assert len(result.err.strip().splitlines()) == 1
        files_of(model, {"vocab_size": 40})
        result = command(*common, model, "--json", out)
        assert result.status == 2 and "reaches id" in result.err and "40 rows" in result.err
        assert json.loads(out.read_text())["verdict"] == "error"

    def test_mlx_lm_loses_a_leading_space(self, command, model):
        pytest.importorskip("mlx_lm")
        result = command(
            "harness", "tokenizer", "--model", model, "--candidate", "mlx-lm", "--fuzz", 20
        )
        assert result.status == 1
        assert "streaming, of" in result.out and "ids, of" not in result.out


def test_trained_kinds_have_what_is_asked_for():
    assert '"add_prefix_space":true' in trained("byte_level_prefix").replace(" ", "")
