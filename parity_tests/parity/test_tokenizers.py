"""Engine against transformers: real tokenizers on random texts, chat templates of the shapes in the
wild, and properties over all of Unicode. mistral-common's own encoders are a second opinion.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidPrompt
from engine.tokenizer import StreamDecoder, load_tokenizer
from harness.backends.torch import tokenizer_side
from harness.tokenizers import Findings, Side, compare, engine_side
from harness.tokenizers.corpus import CONVERSATIONS, Conversation
from harness.tokenizers.questions import CHAT, QUESTIONS
from harness.tokenizers.sides import REFUSED
from parity_tests.tokenizers import (
    KINDS,
    MISTRAL,
    files_of,
    has_mistral,
    mistral_data,
    trained,
    with_special_tokens,
    write_kind,
)

pytestmark = pytest.mark.parity
pytest.importorskip("transformers")

CHATS = [question for question in QUESTIONS if question.kind == CHAT]
TEMPLATES = sorted(path.stem for path in (Path(__file__).parents[1] / "templates").glob("*.jinja"))
FUZZ, FULL_FUZZ = 500, 20_000
TEKKEN = 20_000  # of its 130,000 sequences, except in the full run


@pytest.fixture(scope="session")
def sides(tmp_path_factory):
    """`sides(name, tokens)` -> transformers' and our tokenizer of a kind, loaded once."""

    @functools.cache
    def make(name: str, tekken_tokens: int | None = TEKKEN) -> tuple[Side, Side]:
        if name in MISTRAL and not has_mistral():
            pytest.skip("mistral-common is not installed")
        files = write_kind(tmp_path_factory.mktemp(name), name, tekken_tokens)
        return tokenizer_side(files), engine_side(load_tokenizer(files))

    return make


def assert_equal(findings: Findings) -> None:
    first = findings.first
    assert first is None, f"{first.question}: {first.smallest}"
    assert findings.verdict == "pass"


class TestRandomTexts:
    @pytest.mark.parametrize("name", [*KINDS, *MISTRAL])
    def test_no_difference(self, sides, name):
        assert_equal(compare(*sides(name), FUZZ))

    @pytest.mark.full
    @pytest.mark.timeout(3600)
    @pytest.mark.parametrize("name", [*KINDS, *MISTRAL])
    def test_no_difference_in_many(self, sides, name):
        findings = compare(*sides(name, None), FULL_FUZZ, seed=1)
        print(f"\n{name}: {findings.seconds:.0f} s")
        for answer in findings.answers:
            print(f"  {answer.question}: {answer.differences} of {answer.asked} differ")
        assert_equal(findings)


class TestTemplates:
    """Byte for byte, of every conversation, with a generation prompt and without."""

    @pytest.mark.parametrize("name", TEMPLATES)
    def test_no_difference(self, tmp_path, name):
        expected, actual = self.sides(tmp_path, name)
        assert_equal(compare(expected, actual, 0, questions=CHATS))
        assert expected.render is not None
        told = [expected.render(c, True) for c in CONVERSATIONS]
        assert sum(text != REFUSED for text in told) >= len(told) // 3
        assert "Hello, who are you?" in told[0]

    def test_there_are_enough(self):
        assert len(TEMPLATES) >= 12

    def test_a_template_that_is_off_by_a_newline_is_found(self, tmp_path):
        expected, _ = self.sides(tmp_path, "chatml")
        path = tmp_path / "chat_template.jinja"
        path.write_text(path.read_text().replace("'\\n'}}", "'\\n\\n'}}", 1))
        wrong = engine_side(load_tokenizer(files_of(tmp_path)))
        findings = compare(expected, wrong, 0, questions=CHATS)
        assert findings.first is not None and findings.first.question == "template"

    @pytest.mark.parametrize("name", ["qwen", "gpt_oss", "granite", "mistral"])
    @settings(max_examples=25)
    @given(data=st.data())
    def test_conversations(self, tmp_path_factory, name, data):
        expected, actual = conversation_sides(tmp_path_factory, name)
        words = st.text(max_size=12)
        parts = st.lists(words.map(lambda t: {"type": "text", "text": t}), max_size=3)
        call = st.fixed_dictionaries({"name": words, "arguments": st.dictionaries(words, words)})
        calls = call.map(lambda f: [{"id": "abcdef123", "type": "function", "function": f}])
        message = st.one_of(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "system", "assistant"]), "content": words | parts}
            ),
            st.fixed_dictionaries(
                {"role": st.just("assistant"), "content": st.none(), "tool_calls": calls}
            ),
            st.fixed_dictionaries({"role": st.just("tool"), "content": words}),
            st.fixed_dictionaries(
                {"role": st.just("assistant"), "content": words, "reasoning_content": words}
            ),
        )
        messages = data.draw(st.lists(message, min_size=1, max_size=5))
        tools = data.draw(st.sampled_from([None, CONVERSATIONS[12].tools]))
        c = Conversation("drawn", "hypothesis", tuple(messages), tools)
        assert actual.render(c, True) == expected.render(c, True)

    @staticmethod
    def sides(path: Path, name: str) -> tuple[Side, Side]:
        return template_sides(path, name)


def template_sides(path: Path, name: str) -> tuple[Side, Side]:
    """A template on a tokenizer whose special tokens are those it writes."""
    source = (Path(__file__).parents[1] / "templates" / f"{name}.jinja").read_text()
    (path / "chat_template.jinja").write_text(source)
    (path / "tokenizer.json").write_text(trained("byte_level"))
    written = re.findall(r"<[|\uff5c][^<>'\" ]+[|\uff5c]>|\[/?[A-Z_]{4,}\]|<start_of_turn>", source)
    stated = {**KINDS["byte_level"][1], "extra_special_tokens": sorted(set(written))}
    files = files_of(path, tokenizer_config=stated)
    return tokenizer_side(files), engine_side(load_tokenizer(files))


_conversation_sides: dict[str, tuple[Side, Side]] = {}


def conversation_sides(tmp_path_factory: Any, name: str) -> tuple[Any, Any]:
    if name not in _conversation_sides:
        _conversation_sides[name] = template_sides(tmp_path_factory.mktemp(name), name)
    return _conversation_sides[name]


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=24)
FEW = ["byte_level", "many_added", "unigram", "gemma_like", "word_piece_cleaned"]


class TestProperties:
    @pytest.mark.parametrize("name", FEW)
    @settings(max_examples=80)
    @given(text=ANY)
    def test_all_of_unicode(self, sides, name, text):
        expected, actual = sides(name)
        for special in (True, False):
            assert actual.encode(text, special) == expected.encode(text, special)
        ids = expected.encode(text, True).ids
        assert actual.decode(ids, True) == expected.decode(ids, True)
        assert actual.stream(ids, True) == expected.decode(ids, True)

    @pytest.mark.parametrize("name", FEW)
    @given(before=ANY, half=st.integers(0xD800, 0xDFFF), after=ANY)
    @settings(max_examples=20)
    def test_surrogates_are_refused(self, sides, name, before, half, after):
        _, actual = sides(name)
        with pytest.raises(InvalidPrompt, match=f"U\\+{half:04X}, at character {len(before)}"):
            actual.encode(f"{before}{chr(half)}{after}", True)

    @pytest.mark.parametrize("name", FEW)
    @settings(max_examples=80)
    @given(data=st.data())
    def test_vocabulary_walks(self, sides, name, data):
        expected, actual = sides(name)
        ids = tuple(data.draw(st.lists(st.integers(0, expected.facts["max_id"]), max_size=12)))
        for skip in (True, False):
            whole = expected.decode(ids, skip)
            assert actual.decode(ids, skip) == whole
            assert actual.stream(ids, skip) == whole

    @settings(max_examples=200)
    @given(data=st.data())
    def test_added_tokens_that_collide(self, sides, data):
        expected, actual = sides("many_added")
        parts = [*expected.added.values(), *(t[:-1] for t in expected.added.values())]
        parts += ["x", " ", "\n", "words", "ÅÅ", "A\u030aA\u030a"]
        text = "".join(data.draw(st.lists(st.sampled_from(parts), max_size=8)))
        assert actual.encode(text, False) == expected.encode(text, False)


@pytest.mark.skipif(not has_mistral(), reason="mistral-common is not installed")
class TestMistralCommon:
    """A second opinion: Mistral's own encoders, SentencePiece and tiktoken underneath."""

    def test_tekken(self, tmp_path):
        from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        raw = json.loads((mistral_data() / "tekken_240911.json").read_bytes())
        path = tmp_path / "tekken.json"
        path.write_text(json.dumps(with_special_tokens(raw, TEKKEN)))
        ours = load_tokenizer(files_of(tmp_path))
        theirs = Tekkenizer.from_file(path)
        assert (ours.bos_id, ours.eos_ids) == (theirs.bos_id, {theirs.eos_id})
        assert ours.vocab_size == theirs.n_words
        for text in plain_texts():
            ids = theirs.encode(text, bos=True, eos=False)
            assert ours.encode(text) == ids
            assert ours.decode(ids, skip_special=True) == theirs.decode(
                ids, special_token_policy=SpecialTokenPolicy.IGNORE
            )

    def test_tekken_without_a_list_of_special_tokens(self, tmp_path):
        raw = json.loads((mistral_data() / "tekken_240718.json").read_bytes())
        listed, bare = (tmp_path / name for name in ("listed", "bare"))
        for folder in (listed, bare):
            folder.mkdir()
        raw = with_special_tokens(raw, 2000)
        (listed / "tekken.json").write_text(json.dumps(raw))
        del raw["special_tokens"]
        (bare / "tekken.json").write_text(json.dumps(raw))
        one, other = (load_tokenizer(files_of(folder)) for folder in (listed, bare))
        assert one.added == other.added and one.vocab_size == other.vocab_size
        assert len(one.added) == 1000 and one.added[3] == "[INST]"

    @pytest.mark.parametrize("name", ["mistral_v1", "mistral_v7"])
    def test_sentencepiece_of_words(self, sides, name):
        """Where transformers, which is what counts, and SentencePiece agree: ordinary text, with
        the space in front written down where transformers forgets it (docs/TOKENIZERS.md)."""
        from sentencepiece import SentencePieceProcessor

        theirs = SentencePieceProcessor(model_file=str(mistral_data() / MISTRAL[name][0]))
        _, ours = sides(name)
        words = [text for text in plain_texts() if re.fullmatch(r"\S+( \S+)*", text)]
        prefix = "\u2581" if name == "mistral_v7" else ""
        equal = sum(list(ours.encode(prefix + t, False).ids) == theirs.encode(t) for t in words)
        assert equal == len(words) > 5


class TestDefectsOfTransformers:
    """Each with its reproduction; docs/TOKENIZERS.md lists them."""

    @pytest.mark.skipif(not has_mistral(), reason="mistral-common is not installed")
    def test_tekken_alone_has_neither_bos_nor_eos(self, tmp_path):
        """The file is named by mistral-common, which begins every text with <s>; so do we."""
        from transformers import AutoTokenizer

        raw = json.loads((mistral_data() / "tekken_240911.json").read_bytes())
        (tmp_path / "tekken.json").write_text(json.dumps(with_special_tokens(raw, 2000)))
        files = files_of(tmp_path, {"model_type": "mistral"})
        theirs, ours = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(files)
        assert (theirs.bos_token_id, theirs.eos_token_id) == (None, None)
        assert (ours.bos_id, ours.eos_ids) == (1, {2})
        assert ours.encode("Hello") == [1, *theirs("Hello")["input_ids"]]

    @pytest.mark.skipif(not has_mistral(), reason="mistral-common is not installed")
    def test_mistral_sentencepiece_gets_no_space_in_front(self, sides):
        """tokenizer.model says add_dummy_prefix; for model_type mistral transformers passes it
        over. The model was trained with SentencePiece; we do what transformers does."""
        from sentencepiece import SentencePieceProcessor

        theirs = SentencePieceProcessor(model_file=str(mistral_data() / MISTRAL["mistral_v7"][0]))
        expected, actual = sides("mistral_v7")
        ids = expected.encode("Hello", False).ids
        assert ids == actual.encode("Hello", False).ids
        assert list(ids) != theirs.encode("Hello")
        assert list(expected.encode("\u2581Hello", False).ids) == theirs.encode("Hello")


def plain_texts() -> list[str]:
    """Written texts without anything that looks like a special token, which Mistral's encoders take
    for text, and without what normalisation changes."""
    from harness.tokenizers.corpus import WRITTEN

    odd = ("special", "byte tokens", "metaspace", "last characters", "replacement")
    return [t.text for t in WRITTEN if t.text and not t.name.startswith(odd)]


def test_a_stream_needs_four_things(sides):
    """`StreamDecoder(tokenizer)` is all that a server has to know."""
    _, _ = sides("byte_level")

    class Letters:
        clean_up, special_ids = False, frozenset({0})

        def raw_decode(self, ids, *, skip_special=False):
            return "".join(chr(96 + id) for id in ids)

        def token(self, id):
            return chr(96 + id)

    decoder = StreamDecoder(Letters(), skip_special=True)
    assert [decoder.push(id) for id in (0, 1, 2)] == ["", "a", "b"]
    assert decoder.finish() == ""
