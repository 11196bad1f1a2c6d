"""Token ids as transformers gives them, from every format, and from every configuration file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, processors

from engine.errors import InvalidPrompt, TokenizerMismatch
from engine.files import ModelFiles
from engine.tokenizer import Tokenizer, check_fits, load_tokenizer
from engine.tokenizer.classes import rebuilding_class
from engine.tokenizer.settings import read_settings
from parity_tests.tokenizers import files_of, sentencepiece_model, trained

TEXTS = [
    "",
    "Hello world",
    "  leading,\n\n    newlines\tand tabs ",
    "def f(self, x=1234):\n    return f'{x}'",
    "héé 日本語 😀 e\u0301",
    "don't I'LL ▁ x<bos>y <s> z <|endoftext|>foo <mask> <extra> <late> </s>",
]


def folder(
    path: Path,
    tokenizer: str | bytes | None,
    config: dict[str, Any] | None = None,
    generation: dict[str, Any] | None = None,
    **settings: Any,
) -> ModelFiles:
    """A model's folder with everything but weights."""
    if isinstance(tokenizer, bytes):
        (path / "tokenizer.model").write_bytes(tokenizer)
    elif tokenizer is not None:
        (path / "tokenizer.json").write_text(tokenizer)
    others = {"tokenizer_config": settings or None, "generation_config": generation}
    return files_of(path, config, **{k: v for k, v in others.items() if v is not None})


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
MORE_CLASSES = ["CohereTokenizer", "GPTNeoXTokenizer", "Qwen3_5Tokenizer"]


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
            if lacks_unknown(files):
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


def lacks_unknown(files: ModelFiles) -> bool:
    """Whether the rebuilt tokenizer needs an unknown token that the vocabulary does not have."""
    raw = (files.folder / "tokenizer.json").read_text()
    rebuilt = rebuilding_class('"ByteLevel"' in raw, read_settings(files))
    return rebuilt == "GemmaTokenizer" and "<unk>" not in json.dumps(json.loads(raw)["model"])


OLDER: dict[str, dict[str, dict[str, Any]]] = {
    "special_tokens_map wins": {
        "tokenizer_config": {"eos_token": "<x>", "unk_token": "<unk>"},
        "special_tokens_map": {
            "eos_token": {"content": "</s>", "lstrip": True, "normalized": False},
            "bos_token": "<s>",
            "additional_special_tokens": ["<late>"],
        },
    },
    "added_tokens_decoder passes older files over": {
        "tokenizer_config": {
            "eos_token": "</s>",
            "added_tokens_decoder": {"9": {"content": "argument", **OBJECT, "special": False}},
        },
        "special_tokens_map": {"eos_token": "<x>"},
        "added_tokens": {"<late>": 900},
    },
    "added_tokens.json": {
        "tokenizer_config": {"eos_token": "</s>"},
        "added_tokens": {"<late>": 901, "<mask>": 900, "</s>": 902},
    },
    "extra ones of both": {
        "tokenizer_config": {"additional_special_tokens": ["<mask>"], "image_token": "<image>"},
        "special_tokens_map": {"extra_special_tokens": ["<late>", "<mask>"]},
    },
    "a named one that is no special token by itself": {
        "tokenizer_config": {
            "mask_token": {"__type": "AddedToken", "content": "<mask>", **OBJECT, "lstrip": True},
            "extra_special_tokens": {"audio_token": "<late>"},
        },
    },
    "special tokens are split": {
        "tokenizer_config": {"split_special_tokens": True, "eos_token": "<late>"},
    },
}


class TestSettings:
    @pytest.mark.parametrize("kind", ["byte_level", "gemma_like"])
    @pytest.mark.parametrize("case", OLDER)
    def test_precedence_of_the_files(self, tmp_path, case, kind):
        (tmp_path / "tokenizer.json").write_text(trained(kind))
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        assert_as_transformers(files_of(tmp_path, config, **OLDER[case]))

    @pytest.mark.parametrize("kind", ["byte_level", "gemma_like"])
    @pytest.mark.parametrize("name", MORE_CLASSES)
    def test_other_classes(self, tmp_path, name, kind):
        assert_as_transformers(folder(tmp_path, trained(kind), tokenizer_class=name))

    def test_a_number_of_a_file_that_is_none_is_no_id(self, tmp_path):
        files = folder(tmp_path, trained("byte_level"), {"eos_token_id": [True, -1, "3", 4.0, 5]})
        assert load_tokenizer(files).eos_ids == {5}

    def test_a_name_without_a_token_names_no_id(self):
        """Else EOS would be whatever is unknown."""
        backend = Backend.from_str(trained("gemma_like"))
        assert Tokenizer(backend, None, ()).eos_ids == frozenset()

    def test_sets_of_ids_are_nobodys_to_change(self, tmp_path):
        tokenizer = load_tokenizer(folder(tmp_path, trained("byte_level")))
        assert isinstance(tokenizer.eos_ids, frozenset)


class TestPrompt:
    @pytest.mark.parametrize("kind", ["byte_level", "gemma_like", "unigram"])
    def test_bos_is_there_once(self, tmp_path, kind):
        bos = "<|bos|>" if kind == "byte_level" else "<bos>"
        stated = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos}
        tokenizer = load_tokenizer(folder(tmp_path, trained(kind), **stated))
        for text in ("x", "", f"{bos}x", bos):
            assert tokenizer.prompt(text).count(tokenizer.bos_id) == 1
        assert tokenizer.prompt(f"{bos}x") == tokenizer.encode(f"{bos}x", special=False)
        assert tokenizer.encode(f"{bos}x").count(tokenizer.bos_id) == 2  # as transformers has it
        assert tokenizer.prompt(f"x{bos}") == tokenizer.encode(f"x{bos}")

    def test_where_nothing_adds_bos_none_is_added(self, tmp_path):
        raw = json.loads(trained("byte_level")) | {"post_processor": None}
        stated = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>"}
        tokenizer = load_tokenizer(folder(tmp_path, json.dumps(raw), **stated))
        assert tokenizer.bos_id not in tokenizer.prompt("x")
        assert tokenizer.prompt("<|bos|>x").count(tokenizer.bos_id) == 1


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
        assert tokenizer.bos_id == 2  # the tokenizer's own, whatever config.json says

    def test_config_alone(self, tmp_path):
        config = {"bos_token_id": 0, "eos_token_id": [1, 5]}
        tokenizer = load_tokenizer(folder(tmp_path, trained("byte_level"), config))
        assert (tokenizer.bos_id, tokenizer.eos_ids) == (None, {1, 5})

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

    def test_half_a_surrogate_pair(self, tmp_path):
        tokenizer = load_tokenizer(folder(tmp_path, trained("byte_level")))
        with pytest.raises(InvalidPrompt, match=r"U\+D83D, at character 1"):
            tokenizer.encode("a\ud83db")

    @pytest.mark.parametrize("content", [b"{}", b"[1]", b'{"config": {}, "vocab": 3}', b"x"])
    def test_an_unreadable_tekken(self, tmp_path, content):
        (tmp_path / "tekken.json").write_bytes(content)
        text = message(lambda: load_tokenizer(files_of(tmp_path)))
        assert str(tmp_path / "tekken.json") in text and "again" in text


class TestFits:
    def test_spare_rows_are_normal(self):
        tokenizer = Tokenizer(Backend.from_str(trained("byte_level")), None, ())
        assert tokenizer.max_id == tokenizer.vocab_size - 1 == 399
        check_fits(tokenizer.max_id, 400, "m")
        check_fits(tokenizer.max_id, 800, "m")

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

    def test_missing_ids(self):
        text = message(lambda: check_fits(399, 801, "some/folder"))
        assert "id 399" in text and "801 rows" in text and "from 400 are missing" in text
