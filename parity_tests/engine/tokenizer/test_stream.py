"""Text that comes back piece by piece, clean-up of pieces, and where a text is to stop."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from engine.tokenizer import StopStrings, Tokenizer
from engine.tokenizer.cleanup import CleanUp, cleaned
from parity_tests.tokenizers import BYTES, KINDS, trained


@functools.cache
def tokenizer_of(kind: str, clean_up: bool = False) -> Tokenizer:
    return Tokenizer(Backend.from_str(trained(kind)), clean_up=clean_up)


class TestStreaming:
    @pytest.mark.parametrize("skip_special", [False, True])
    @pytest.mark.parametrize("clean_up", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    @settings(deadline=None, max_examples=60)
    @given(data=st.data())
    def test_pieces_are_the_whole(self, kind, clean_up, skip_special, data):
        tokenizer = tokenizer_of(kind, clean_up)
        one = st.integers(0, tokenizer.max_id + 2)
        letters = "a ▁é日😀\ufffd\n.,!?'nmsver"
        texts = st.text(letters, max_size=10).map(tokenizer.encode)
        ids = data.draw(st.lists(one | st.sampled_from(range(8))) | texts)
        stream = tokenizer.stream(skip_special=skip_special)
        pieces = [stream.push(id) for id in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip_special)

    def test_half_characters_without_end(self):
        tokenizer = tokenizer_of("byte_level")
        (byte,) = (tokenizer._backend.token_to_id(token) for token in ("ÿ",))
        letter = tokenizer.encode("a", special=False)
        for ids in ([byte] * 100, [*letter, *[byte] * 50, *letter]):
            stream = tokenizer.stream()
            pieces = [stream.push(id) for id in ids]
            assert sum(map(bool, pieces)) > len(ids) - 3  # one is held back, not all
            assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)

    def test_a_character_comes_whole_and_at_once(self):
        tokenizer = tokenizer_of("byte_level")
        ids = tokenizer.encode("a😀b", special=False)
        assert len(ids) == 6
        stream = tokenizer.stream()
        assert [stream.push(id) for id in ids] == ["a", "", "", "", "😀", "b"]
        assert stream.finish() == ""

    def test_bytes_wait_for_the_end_of_their_run(self):
        tokenizer = tokenizer_of("gemma_like")
        ids = tokenizer.encode("a☃b", special=False)
        stream = tokenizer.stream()
        assert [stream.push(id) for id in ids] == ["a", "", "", "", "☃b"]
        ids = [tokenizer.encode("a", special=False)[0], BYTES.index("<0xE2>") + 5]
        stream = tokenizer.stream()
        assert [stream.push(id) for id in ids] == ["a", ""]
        assert stream.finish() == "\ufffd"

    def test_a_token_without_text_does_not_end_a_run(self):
        backend = Backend.from_str(trained("unigram"))
        tokenizer = Tokenizer(backend, None, ())
        ids = [backend.token_to_id(token) for token in ("<0xC3>", "<0xA9>", "<bos>", "<0xFF>")]
        stream = tokenizer.stream(skip_special=True)
        assert [stream.push(id) for id in ids] == ["", "", "", ""]
        assert stream.finish() == "\ufffd" * 3 == tokenizer.decode(ids, skip_special=True)

    def test_words_keep_their_spaces(self):
        for kind in KINDS:
            tokenizer = tokenizer_of(kind)
            text = "the parser adds  an argument "
            stream = tokenizer.stream(skip_special=True)
            ids = tokenizer.encode(text)
            pieces = [stream.push(id) for id in ids]
            whole = tokenizer.decode(ids, skip_special=True)
            assert "".join(pieces) + stream.finish() == whole
            assert whole.strip() == " ".join(text.split()) or whole.strip() == text.strip()
            assert sum(map(bool, pieces)) > 5

    def test_work_per_token_does_not_grow(self):
        tokenizer = tokenizer_of("byte_level")
        longest = 0

        def decode(ids: list[int]) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return tokenizer.decode(ids)

        stream = tokenizer.stream()
        stream._decode = decode
        for id in tokenizer.encode("argument " * 300):
            stream.push(id)
        assert longest < 20


LETTERS = st.text(" .?!,'nmtsverx", max_size=30)


class TestCleanUp:
    @settings(max_examples=1500)
    @example("n ' t", [1])
    @example("a  ' s", [2])
    @given(LETTERS, st.lists(st.integers(0, 30), max_size=6))
    def test_pieces_are_the_whole(self, text, cuts):
        edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        clean_up = CleanUp()
        pieces = [clean_up.push(text[a:b]) for a, b in itertools.pairwise(edges)]
        assert "".join(pieces) + clean_up.finish() == cleaned(text)

    @settings(max_examples=100)
    @given(LETTERS)
    def test_as_transformers(self, text):
        base = pytest.importorskip("transformers.tokenization_utils_base").PreTrainedTokenizerBase
        assert cleaned(text) == base.clean_up_tokenization(None, text)

    def test_words_do_not_wait(self):
        clean_up = CleanUp()
        assert [clean_up.push(word) for word in ("some", " words", " .")] == ["some", " words", ""]
        assert clean_up.finish() == "."


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition: the stop that is complete first, the longest of those that end together."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


class TestStopStrings:
    @settings(max_examples=500)
    @given(st.text("abc", max_size=16), STOPS, st.lists(st.integers(0, 16), max_size=6))
    def test_pieces_make_no_difference(self, text, strings, cuts):
        edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        stops = StopStrings(strings)
        given_out = ""
        for a, b in itertools.pairwise(edges):
            given_out += stops.push(text[a:b])
            assert not any(string in given_out for string in strings)
        given_out += stops.finish()
        assert (given_out, stops.stopped) == first_stop(text, strings)

    def test_a_stop_across_pieces_does_not_leak(self):
        stops = StopStrings(["</end>"])
        assert [stops.push(piece) for piece in ("text <", "/en", "d> more")] == ["text ", "", ""]
        assert (stops.stopped, stops.push("x"), stops.finish()) == ("</end>", "", "")

    def test_what_is_no_stop_is_not_lost(self):
        stops = StopStrings(["</end>"])
        assert [stops.push(piece) for piece in ("a<", "/e", "x")] == ["a", "", "</ex"]
        assert (stops.push("<"), stops.finish(), stops.stopped) == ("", "<", None)

    def test_nothing_stops_nothing(self):
        stops = StopStrings([""])
        assert (stops.push("abc"), stops.finish()) == ("abc", "")

    def test_requests_do_not_share(self):
        one, other = StopStrings(["a"]), StopStrings(["b"])
        assert (one.push("b"), other.push("a")) == ("b", "a")
