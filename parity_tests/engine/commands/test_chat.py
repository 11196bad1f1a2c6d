"""`engine chat` through a pipe, and in a terminal."""

from __future__ import annotations

import io
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from engine.files import find_model
from engine.generate import generate
from engine.model import load

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(ROOT / "golden" / "models" / "tiny-llama", folder)
    template = ROOT / "parity_tests" / "templates" / "chatml.jinja"
    shutil.copy(template, folder / "chat_template.jinja")
    return folder


@pytest.fixture
def chatted(command, model, monkeypatch):
    """`chatted(text, *options)`: a conversation through a pipe."""

    def run(text, *options, model=model, tokens=7):
        typed = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        given = ("--backend", "mlx", "--model", model, "--max-tokens", tokens)
        return command("engine", "chat", *given, *options)

    return run


def expected(model, *messages, tokens=7):
    """The answer to a conversation, from the library."""
    loaded = load(find_model(model))
    ids = loaded.tokenizer.chat(list(messages))
    taken = generate(loaded.decoder, ids, tokens, stop=loaded.tokenizer.eos_ids)
    return loaded.tokenizer.decode(taken, skip_special=True)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_each_answer_is_to_the_whole_conversation(chatted, model):
    first = expected(model, user("def a(x):"))
    second = expected(model, user("def a(x):"), assistant(first), user("and b?"))
    result = chatted("def a(x):\n\nand b?\n")
    assert result.status == 0, result.err
    assert result.out == f"{first}\n{second}\n"
    assert second != expected(model, user("and b?"))


def test_the_system_is_told_beforehand(chatted, model):
    told = [{"role": "system", "content": "class Zebra"}, user("def a(x):")]
    result = chatted("def a(x):\n", "--system", "class Zebra")
    assert result.out == expected(model, *told) + "\n"


def test_reset_forgets_and_exit_ends(chatted, model):
    alone = expected(model, user("import os"))
    result = chatted("def a(x):\n/reset\nimport os\n/exit\nimport sys\n")
    assert result.status == 0
    assert result.out.endswith(f"{alone}\n")
    assert result.out == f"{expected(model, user('def a(x):'))}\n{alone}\n"


def test_a_message_of_several_lines_is_one(chatted, model):
    result = chatted('"""def a(x):\n    return\n\n"""\n')
    assert result.out == expected(model, user("def a(x):\n    return")) + "\n"
    assert chatted('"""def a(x):\n    return').out == result.out
    assert chatted('"""import os"""\n').out == expected(model, user("import os")) + "\n"


def test_an_unknown_command_is_no_message(chatted):
    result = chatted("/rset\n")
    assert result.out == "" and "/rset is no command; /reset forgets" in result.err
    assert chatted("/help\n").out == ""
    assert chatted("/etc/passwd is a file\n").out != ""


def test_what_is_no_text_is_answered_all_the_same(chatted):
    assert chatted(b"caf\xe9 \xff\n").status == 0


def test_an_answer_ends_at_a_stop_token(chatted, model):
    loaded = load(find_model(model))
    ids = loaded.tokenizer.chat([user("def a(x):")])
    tokens = list(generate(loaded.decoder, ids, 7))
    at = tokens.index(tokens[3])
    result = chatted("def a(x):\n", "--stop-token", tokens[3])
    assert result.out == loaded.tokenizer.decode(tokens[:at], skip_special=True) + "\n"
    assert result.out != expected(model, user("def a(x):")) + "\n"
    assert "'no such token' is" in chatted("x\n", "--stop-token", "no such token").err


def test_a_seed_answers_the_same_again_and_each_answer_has_its_own(chatted):
    wish = ("--temperature", 1.5, "--seed", 4)
    twice = chatted("a\n/reset\na\n", *wish)
    assert twice.out == chatted("a\n/reset\na\n", *wish).out
    assert chatted("a\n", "--temperature", 1.5, "--seed", 5).out != chatted("a\n", *wish).out
    assert "sampling: temperature 1.5, seed 4, order transformers" in twice.err


def test_a_model_without_a_template_is_one_line(chatted, tiny_llama):
    result = chatted("a\n", model=tiny_llama)
    assert result.status == 2 and "no chat template" in result.err.splitlines()[-1]
    assert result.out == ""


def test_what_a_template_refuses_is_said_before_anything_is_typed(chatted, model, tmp_path):
    strict = shutil.copytree(model, tmp_path / "strict")
    (strict / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    result = chatted("", "--system", "x", model=strict)
    assert result.status == 2 and "no system" in result.err
    assert chatted("hello\n", model=strict).status == 0


# The terminal becomes the one that Ctrl-C is sent from; a fork of this process may have threads.
OWN_TERMINAL = """
import fcntl, runpy, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
runpy.run_module("engine", run_name="__main__")
"""


class Terminal:
    """`engine chat` on a terminal of its own."""

    def __init__(self, model):
        self.shown = ""
        self.fd, theirs = os.openpty()
        given = ["--backend", "mlx", "--model", str(model), "--max-tokens", "1000000"]
        self.program = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, "chat", *given],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(theirs)

    def until(self, words):
        """What it shows up to some words."""
        shown = ""
        while words not in shown:
            shown += self.read()
        return shown

    def read(self, seconds=60):
        """What it shows next."""
        ready, _, _ = select.select([self.fd], [], [], seconds)
        assert ready, f"it shows nothing more after {self.shown[-300:]!r}"
        text = os.read(self.fd, 4096).decode(errors="replace")
        self.shown += text
        return text

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def again(self, key, done, seconds=60):
        """Press a key once in a while, until something is so."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"pressed {key!r} and got {self.shown[-300:]!r}"
            self.type(key)
            ready, _, _ = select.select([self.fd], [], [], 0.2)
            with suppress(OSError):  # of Linux, where the other end is closed
                self.shown += os.read(self.fd, 4096).decode(errors="replace") if ready else ""


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX's")
def test_control_c_stops_an_answer_and_not_the_program(model):
    """The answer has no end of its own; Ctrl-C where nothing is written tells the way out."""
    terminal = Terminal(model)
    terminal.until(">>> ")
    begin = expected(model, user("def a(x):"), tokens=3)
    for keys in ("\x03", "\x03\x03"):
        terminal.type("def a(x):\n")
        terminal.until(begin)
        terminal.type(keys)
        assert "(stopped)" in terminal.until(">>> ")
        terminal.type("/reset\n")
        terminal.until(">>> ")
    # Of the threads of a program any may get a signal; readline sees it at the next key after that.
    terminal.type("\x03")
    terminal.again("\r", lambda: "/exit or Ctrl-D ends the conversation" in terminal.shown)
    # Between two prompts the terminal is not readline's, and takes Ctrl-D for itself.
    terminal.again("\x04", lambda: terminal.program.poll() is not None)
    assert terminal.program.returncode == 0
    os.close(terminal.fd)
