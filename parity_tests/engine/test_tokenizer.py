"""Token ids as transformers gives them, and text that comes back piece by piece."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from engine.errors import TokenizerMismatch
from engine.files import ModelFiles
from engine.tokenizer import Tokenizer, check_fits, load_tokenizer
from engine.tokenizer.classes import rebuilding_class

CORPUS = [*Path(argparse.__file__).read_text().splitlines(), "héllo wörld don't I'LL 日本語"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = [
    "",
    "Hello world",
    "  leading,\n\n    newlines\tand tabs ",
    "def f(self, x=1234):\n    return f'{x}'",
    "héé 日本語 😀 e\u0301",
    "don't I'LL ▁ x<bos>y <s> z <|endoftext|>foo <mask> <extra>",
]


def byte_level() -> Backend:
    """As llama 3: byte-level BPE, BOS by template."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|bos|>", "<|endoftext|>"]
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return with_bos(backend, "<|bos|>")


def unigram() -> Backend:
    """SentencePiece-style, with byte fallback."""
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    backend.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    raw = json.loads(backend.to_str())
    raw["model"]["vocab"] += [[byte, -20.0] for byte in BYTES]
    raw["model"]["byte_fallback"] = True
    backend = Backend.from_str(json.dumps(raw))
    backend.decoder = spaces_and_bytes(decoders.Strip(" ", 1, 0))
    return with_bos(backend, "<bos>")


def gemma_like() -> Backend:
    """As gemma: BPE over ▁, with byte fallback and no space in front."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *BYTES]
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False),
    )
    backend.decoder = spaces_and_bytes()
    return with_bos(backend, "<bos>")


def metaspace() -> Backend:
    """Unigram whose decoder is Metaspace itself."""
    backend = unigram()
    backend.decoder = decoders.Metaspace()
    return backend


def spaces_and_bytes(*more: Any) -> Any:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *more]
    return decoders.Sequence(steps)


def with_bos(backend: Backend, bos: str) -> Backend:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    return backend


KINDS: dict[str, Callable[[], Backend]] = {
    "byte_level": byte_level,
    "unigram": unigram,
    "gemma_like": gemma_like,
    "metaspace": metaspace,
}
_trained: dict[str, str] = {}


def trained(kind: str) -> str:
    """The tokenizer.json of a kind, trained once."""
    if kind not in _trained:
        _trained[kind] = KINDS[kind]().to_str()
    return _trained[kind]


def folder(
    path: Path,
    tokenizer: str | bytes | None,
    config: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    **settings: Any,
) -> ModelFiles:
    """A model's folder with everything but weights."""
    config = {"model_type": "llama", **(config or {})}
    if isinstance(tokenizer, bytes):
        (path / "tokenizer.model").write_bytes(tokenizer)
    elif tokenizer is not None:
        (path / "tokenizer.json").write_text(tokenizer)
    (path / "config.json").write_text(json.dumps(config))
    if settings:
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return ModelFiles(str(path), path, (), None, config)


def assert_as_transformers(files: ModelFiles) -> None:
    """The same ids, the same text, the same special tokens."""
    auto = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(files.folder)
    ours = load_tokenizer(files)
    for text in TEXTS:
        for special in (True, False):
            ids = auto(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, special=special) == ids
            assert ours.decode(ids) == auto.decode(ids)
            skipped = auto.decode(ids, skip_special_tokens=True)
            assert ours.decode(ids, skip_special=True) == skipped
    assert ours.vocab_size == len(auto)
    assert ours.max_id == max(auto.get_vocab().values())
    assert ours.bos_id == auto.bos_token_id
    assert ours.eos_ids == ({auto.eos_token_id} if auto.eos_token_id is not None else set())


OBJECT = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
SETTINGS: dict[str, dict[str, Any]] = {
    "no configuration": {},
    "add_bos_token is passed over": {"add_bos_token": False, "add_eos_token": True},
    "tokens as objects": {
        "bos_token": {"content": "<bos>", "__type": "AddedToken", **OBJECT},
        "eos_token": "<eos>",
        "add_prefix_space": False,
        "additional_special_tokens": ["<extra>"],
    },
    "tokens the vocabulary lacks": {
        "eos_token": "<end>",
        "bos_token": "<begin>",
        "legacy": True,
        "added_tokens_decoder": {"3": {"content": "<unk>", "special": True, **OBJECT}},
    },
}
MODEL_TYPES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2"]
CLASSES = [None, "PreTrainedTokenizerFast"]
CLASSES += ["LlamaTokenizerFast", "GemmaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer"]


class TestAgainstTransformers:
    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    @pytest.mark.parametrize("kind", ["byte_level", "unigram", "gemma_like"])
    def test_every_class_on_every_file(self, tmp_path, kind, model_type):
        """Where a class rebuilds the pipeline (even to nonsense), so do we."""
        for i, (name, named) in enumerate((c, s) for c in CLASSES for s in SETTINGS.values()):
            path = tmp_path / str(i)
            path.mkdir()
            stated = {**named, **({"tokenizer_class": name} if name else {})}
            files = folder(path, trained(kind), {"model_type": model_type}, **stated)
            if lacks_unknown(kind, model_type, stated):
                with pytest.raises(TokenizerMismatch, match="<unk>"):
                    load_tokenizer(files).encode("☃")
            else:
                assert_as_transformers(files)

    @pytest.mark.parametrize("model_type", ["bpe", "unigram"])
    @pytest.mark.parametrize("prefix", [False, True])
    def test_sentencepiece(self, tmp_path, model_type, prefix):
        data = sentencepiece_model(model_type, prefix)
        for i, (kind, stated) in enumerate(
            [
                ("llama", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}),
                ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
                ("llama", {"add_bos_token": True, "add_eos_token": True}),
                ("mistral", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}),
                ("gemma2", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}),
            ]
        ):
            path = tmp_path / str(i)
            path.mkdir()
            assert_as_transformers(folder(path, data, {"model_type": kind}, **stated))

    def test_truncation_in_the_file_is_passed_over(self, tmp_path):
        backend = Backend.from_str(trained("byte_level"))
        backend.enable_truncation(3)
        backend.enable_padding(length=50)
        assert_as_transformers(folder(tmp_path, backend.to_str()))


def lacks_unknown(kind: str, model_type: str, stated: dict[str, Any]) -> bool:
    """Whether the rebuilt tokenizer needs an unknown token that the vocabulary does not have."""
    raw = json.loads(trained(kind))
    rebuilt = rebuilding_class(raw, stated, {"model_type": model_type})
    return rebuilt == "GemmaTokenizer" and "<unk>" not in json.dumps(raw["model"]["vocab"])


def sentencepiece_model(model_type: str, prefix: bool) -> bytes:
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    model = io.BytesIO()
    trainer.train(
        sentence_iterator=iter(filter(str.strip, CORPUS)),
        model_writer=model,
        vocab_size=600,
        model_type=model_type,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=["<extra>"],
        minloglevel=5,
    )
    return model.getvalue()


class TestStreaming:
    @pytest.mark.parametrize("skip_special", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    @settings(deadline=None, max_examples=40)
    @given(data=st.data())
    def test_pieces_are_the_whole(self, kind, skip_special, data):
        backend = Backend.from_str(trained(kind))
        tokenizer = Tokenizer(backend, None, ())
        one = st.integers(0, tokenizer.max_id + 2)
        texts = st.text("a ▁é日😀\ufffd\n", max_size=8).map(tokenizer.encode)
        ids = data.draw(st.lists(one | st.sampled_from(range(8))) | texts)
        stream = tokenizer.stream(skip_special=skip_special)
        pieces = [stream.add(id) for id in ids] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode(ids, skip_special=skip_special)

    def test_a_character_comes_whole_and_at_once(self):
        tokenizer = Tokenizer(Backend.from_str(trained("byte_level")), None, ())
        ids = tokenizer.encode("a😀b", special=False)
        assert len(ids) == 6
        stream = tokenizer.stream()
        assert [stream.add(id) for id in ids] == ["a", "", "", "", "😀", "b"]
        assert stream.finish() == ""

    def test_bytes_wait_for_the_end_of_their_run(self):
        tokenizer = Tokenizer(Backend.from_str(trained("gemma_like")), None, ())
        ids = tokenizer.encode("a☃b", special=False)
        stream = tokenizer.stream()
        assert [stream.add(id) for id in ids] == ["a", "", "", "", "☃b"]
        ids = [tokenizer.encode("a", special=False)[0], BYTES.index("<0xE2>") + 5]
        stream = tokenizer.stream()
        assert [stream.add(id) for id in ids] == ["a", ""]
        assert stream.finish() == "\ufffd"

    def test_a_token_without_text_does_not_end_a_run(self):
        backend = Backend.from_str(trained("unigram"))
        tokenizer = Tokenizer(backend, None, ())
        ids = [backend.token_to_id(token) for token in ("<0xC3>", "<0xA9>", "<bos>", "<0xFF>")]
        stream = tokenizer.stream(skip_special=True)
        assert [stream.add(id) for id in ids] == ["", "", "", ""]
        assert stream.finish() == "\ufffd" * 3 == tokenizer.decode(ids, skip_special=True)

    def test_words_keep_their_spaces(self):
        for kind in KINDS:
            tokenizer = Tokenizer(Backend.from_str(trained(kind)), None, ())
            text = "the parser adds  an argument "
            stream = tokenizer.stream(skip_special=True)
            pieces = [stream.add(id) for id in tokenizer.encode(text)]
            assert "".join(pieces) + stream.finish() == text
            assert sum(map(bool, pieces)) > 5

    def test_work_per_token_does_not_grow(self):
        tokenizer = Tokenizer(Backend.from_str(trained("byte_level")), None, ())
        longest = 0

        def decode(ids: list[int]) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return tokenizer.decode(ids)

        stream = tokenizer.stream()
        stream._decode = decode
        for id in tokenizer.encode("argument " * 300):
            stream.add(id)
        assert longest < 20


class TestSpecialIds:
    def test_eos_is_what_any_file_says(self, tmp_path):
        files = folder(
            tmp_path,
            trained("gemma_like"),
            {"eos_token_id": 7, "bos_token_id": 9},
            {"eos_token_id": [8, 107, None]},
            eos_token="<eos>",
            bos_token="<bos>",
        )
        tokenizer = load_tokenizer(files)
        assert tokenizer.eos_ids == {1, 7, 8, 107}
        assert tokenizer.bos_id == 2

    def test_config_alone(self, tmp_path):
        config = {"bos_token_id": 0, "eos_token_id": [1, 5]}
        tokenizer = load_tokenizer(folder(tmp_path, trained("byte_level"), config))
        assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, {1, 5})

    def test_nothing_at_all(self, tmp_path):
        tokenizer = load_tokenizer(folder(tmp_path, trained("byte_level")))
        assert (tokenizer.bos_id, tokenizer.eos_ids) == (None, frozenset())


def message(action: Callable[[], object]) -> str:
    with pytest.raises(TokenizerMismatch) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestBadInput:
    def test_no_tokenizer(self, tmp_path):
        files = folder(tmp_path, None)
        text = message(lambda: load_tokenizer(files))
        assert str(tmp_path) in text
        assert "tokenizer.json" in text
        assert "token ids" in text

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 3}', '{"model": {}}'])
    @pytest.mark.parametrize("model_type", ["llama", "gpt2"])
    def test_an_unreadable_tokenizer_json(self, tmp_path, content, model_type):
        files = folder(tmp_path, content, {"model_type": model_type})
        if model_type == "gpt2" and content in ("{}", '{"model": {}}'):
            return  # an empty vocabulary, which check_fits and any prompt will show
        text = message(lambda: load_tokenizer(files))
        assert str(tmp_path / "tokenizer.json") in text
        assert "again" in text

    @pytest.mark.parametrize("content", [b"", b"\xff\xff\xff", b"\n\x7fabc", b"hello world"])
    def test_an_unreadable_tokenizer_model(self, tmp_path, content):
        files = folder(tmp_path, content)
        text = message(lambda: load_tokenizer(files))
        assert str(tmp_path / "tokenizer.model") in text
        assert "again" in text

    def test_an_unreadable_configuration(self, tmp_path):
        files = folder(tmp_path, trained("byte_level"))
        (tmp_path / "tokenizer_config.json").write_text("{")
        text = message(lambda: load_tokenizer(files))
        assert str(tmp_path / "tokenizer_config.json") in text

    def test_a_text_without_tokens(self, tmp_path):
        backend = Backend(models.BPE({"a": 0}, [], unk_token="<unk>"))
        tokenizer = load_tokenizer(folder(tmp_path, backend.to_str()))
        text = message(lambda: tokenizer.encode("ab\nc"))
        assert repr("ab\nc") in text
        assert "token ids" in text


class TestFits:
    def test_spare_rows_are_normal(self):
        tokenizer = Tokenizer(Backend.from_str(trained("byte_level")), None, ())
        assert tokenizer.max_id == tokenizer.vocab_size - 1 == 399
        check_fits(tokenizer.max_id, 400, "m")
        check_fits(tokenizer.max_id, 512, "m")

    def test_an_id_without_a_row(self):
        tokenizer = Tokenizer(Backend.from_str(trained("byte_level")), None, ())
        text = message(lambda: check_fits(tokenizer.max_id, 399, "some/folder"))
        assert "some/folder" in text
        assert "id 399" in text
        assert "399 rows" in text
        assert "not of the same model" in text

    def test_added_tokens_and_templates_count(self):
        backend = Backend.from_str(trained("byte_level"))
        backend.add_special_tokens(["<|user|>"])
        assert Tokenizer(backend, None, ()).max_id == 400
        backend.post_processor = processors.TemplateProcessing(
            single="<odd> $A", special_tokens=[("<odd>", 900)]
        )
        assert Tokenizer(backend, None, ()).max_id == 900
