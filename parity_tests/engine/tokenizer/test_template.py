"""Chat templates: which one counts, what it sees, what it may take, what is said when it fails."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidPrompt, InvalidTemplate
from engine.tokenizer import Templates, load_tokenizer
from engine.tokenizer.sandbox import Limits
from engine.tokenizer.template import plain
from parity_tests.tokenizers import files_of, trained

HELLO = [{"role": "user", "content": "hello"}]
MORE = "additional_chat_templates"
SMALL = Limits(characters=10_000, seconds=0.5)


def render(source: str, messages=HELLO, limits: Limits = SMALL, **more) -> str:
    return Templates({"default": source}, {"bos_token": "<s>"}, "m", limits).render(
        messages, **more
    )


def doubled(start: str, step: str) -> str:
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}"


def refused(source: str, **more) -> str:
    with pytest.raises(InvalidTemplate) as caught:
        render(source, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestWhatItSees:
    def test_messages_tokens_and_variables(self):
        source = "{{ bos_token }}{{ messages[0].content }}{{ x }}{{ add_generation_prompt }}"
        assert render(source, x=1, generation=True) == "<s>hello1True"

    def test_keys_that_are_none_are_not_there(self):
        message = {"role": "assistant", "content": None, "tool_calls": []}
        assert render("{{ messages[0] | tojson }}", [message]) == json.dumps(
            {"role": "assistant", "tool_calls": []}
        )

    def test_the_conversation_is_not_changed(self):
        message = {"role": "assistant", "content": "x", "reasoning": "y"}
        assert render("{{ messages[0].reasoning_content }}", [message]) == "y"
        assert message == {"role": "assistant", "content": "x", "reasoning": "y"}

    def test_only_plain_values(self, tmp_path):
        class Text(str):
            def write(self) -> None: ...

        @dataclasses.dataclass
        class Thing:
            path: str

        value = plain({"a": [Text("x"), 1, True, None], "b": (2.5,), "c": Thing("p")})
        assert value == {"a": ["x", 1, True, None], "b": (2.5,), "c": "<Thing>"}
        assert type(value["a"][0]) is str

    def test_json_escapes_no_html(self):
        assert render("{{ x | tojson }}", x="<é&>") == '"<é&>"'


class TestLimits:
    @pytest.mark.parametrize(
        "source",
        [
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "{% for i in range(99999) %}{% for j in range(999) if false %}{% endfor %}{% endfor %}",
            "{% macro f(n) %}{% for i in range(n) %}{{ f(n) }}{% endfor %}{% endmacro %}{{ f(9) }}",
            doubled("[0]", "{% set ns.x = ns.x + ns.x %}"),
        ],
    )
    def test_time_and_size_of_loops(self, source):
        assert "OverLimit" in (text := refused(source)) or "recursion" in text

    @pytest.mark.parametrize(
        "source",
        [
            "{% for i in range(9999) %}{{ 'xxxxxxxxxx' }}{% endfor %}",
            "{% for i in range(9999) %}text{% endfor %}",
            doubled("'x'", "{% set ns.x = ns.x ~ ns.x %}"),
            doubled("'x'", "{% set ns.x = ns.x + ns.x %}"),
            doubled("'x'", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
            "{{ 'x' * 1000000000 }}",
            "{{ 1000000000 * 'x' }}",
            "{{ ([0] * 1000000000) | length }}",
            "{{ 9 ** 999999999 }}",
            "{{ '%1000000000d' % 1 }}",
            "{{ '%*d' % (1000000000, 1) }}",
            "{{ '{:1000000000}'.format(1) }}",
            "{{ 'x'.ljust(1000000000) }}",
            "{{ 'x' | center(1000000000) }}",
            "{{ messages | tojson(indent=1000000000) }}",
            "{{ ('x' * 9999).replace('x', 'x' * 9999) }}",
        ],
    )
    def test_what_it_writes_and_holds(self, source):
        assert "10,000 characters" in refused(source)

    def test_what_is_within_them_is_left_alone(self):
        assert render("{{ 'ab' * 3 ~ 'c' }}{{ 'x' | center(5) }}{{ 2 ** 3 }}{{ '%03d' % 7 }}") == (
            "abababc  x  8007"
        )

    def test_one_rendering_does_not_count_for_the_next(self):
        templates = Templates({"default": "{{ 'x' * 9000 }}"}, {}, "m", SMALL)
        assert {len(templates.render(HELLO)) for _ in range(3)} == {9000}


class TestSandbox:
    @pytest.mark.parametrize(
        "source",
        [
            "{{ ''.__class__.__mro__ }}",
            "{{ messages.append(1) }}",
            "{{ messages[0].update({'a': 1}) }}",
            "{{ namespace(__class__=1) }}",
            "{{ raise_exception.__globals__.x }}",
            "{{ '{0.__class__}'.format('') }}{{ cycler.__init__.__globals__ }}",
            "{% include 'x' %}",
        ],
    )
    def test_nothing_gets_out_or_changes(self, source):
        assert "fails" in refused(source)


class TestErrors:
    def test_a_template_refuses(self):
        with pytest.raises(InvalidPrompt, match="of m refuses the conversation: roles alternate"):
            render("{{ raise_exception('roles\n alternate') }}")

    def test_a_broken_one_is_named_with_its_line(self):
        assert "'default', line 2" in refused("x\n{% if %}")

    def test_none(self):
        with pytest.raises(InvalidTemplate, match=r"no chat template: put chat_template\.jinja"):
            Templates({}, {}).render(HELLO)

    def test_another_name(self):
        assert "no chat template 'rag': there are default" in refused("x", template="rag")

    @pytest.mark.parametrize(("messages", "said"), [([], "empty"), (["hi"], "message 0 is 'hi'")])
    def test_no_conversation(self, messages, said):
        with pytest.raises(InvalidPrompt, match=said):
            render("x", messages)


class TestPrecedence:
    @pytest.mark.parametrize(
        ("stated", "files", "plain", "with_tools"),
        [
            ("of the config", {}, "of the config", "of the config"),
            ("of the config", {"chat_template.jinja": "of the file"}, "of the file", "of the file"),
            (
                [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}],
                {},
                "one",
                "two",
            ),
            (
                [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}],
                {"chat_template.jinja": "file"},
                "file",
                "file",
            ),
            (
                "of the config",
                {
                    "chat_template.jinja": "file",
                    f"{MORE}/tool_use.jinja": "tools",
                },
                "file",
                "tools",
            ),
        ],
    )
    def test_as_transformers(self, tmp_path, stated, files, plain, with_tools):
        (tmp_path / "tokenizer.json").write_text(trained("byte_level"))
        (tmp_path / MORE).mkdir()
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": stated}
        made = files_of(tmp_path, tokenizer_config=config)
        ours = load_tokenizer(made).templates
        auto = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
        for tools, expected in ((None, plain), ([{"name": "f"}], with_tools)):
            assert ours.render(HELLO, tools=tools) == expected
            theirs = auto.apply_chat_template(HELLO, tools=tools, tokenize=False)
            assert theirs == expected

    def test_named_ones_alone_have_no_default(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text(trained("byte_level"))
        (tmp_path / MORE).mkdir()
        (tmp_path / MORE / "rag.jinja").write_text("x")
        templates = load_tokenizer(files_of(tmp_path)).templates
        assert templates.render(HELLO, template="rag") == "x"
        with pytest.raises(InvalidTemplate, match="no chat template 'default': there are rag"):
            templates.render(HELLO)


@settings(max_examples=60)
@given(st.text(max_size=20), st.sampled_from(["user", "assistant", "system"]))
def test_chat_is_the_text_of_the_template_encoded(text, role):
    tokenizer = chat_tokenizer()
    messages = [{"role": role, "content": text}]
    ids = tokenizer.chat(messages)
    assert ids == tokenizer.encode(
        tokenizer.templates.render(messages, generation=True), special=False
    )
    assert ids[:1] == [tokenizer.bos_id] and ids[1:2] != [tokenizer.bos_id]


def chat_tokenizer():
    from tokenizers import Tokenizer as Backend

    from engine.tokenizer import Tokenizer

    source = "{{ bos_token }}{{ messages[0].role }}: {{ messages[0].content }}"
    templates = Templates({"default": source}, {"bos_token": "<|bos|>"})
    backend = Backend.from_str(trained("byte_level"))
    return Tokenizer(backend, backend.token_to_id("<|bos|>"), templates=templates)
