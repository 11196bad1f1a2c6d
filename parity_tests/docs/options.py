"""Whether a command that a page shows exists, with every option it is shown with; runs nothing.

Of `harness` and `engine` the typer applications are asked, of mlx-lm its parser, and of
`python FILE` the file's own text.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.exceptions import TyperException

ENVIRONMENT = re.compile(r"^python3 ci/environment\.py +")


def words_of(line: str) -> list[str]:
    """A command as words, without the environment it is run in, its variables and its comment."""
    words = shlex.split(ENVIRONMENT.sub("", line), comments=True)
    while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        del words[0]
    return words


def problem(line: str, root: Path) -> str:
    """What is wrong with a command, "" if nothing; every value it needs has to be there."""
    words = words_of(line)
    if not words:
        return ""
    if words[0] in ("harness", "engine"):
        return _typer_problem(words)
    if words[0] == "mlx_lm.convert":
        return _mlx_lm_problem(words[1:])
    if words[0] in ("python", "python3") and words[1].endswith(".py"):
        file = root / words[1]
        if not file.is_file():
            return "" if _made(words[1], root) else f"there is no file {words[1]}"
        text = file.read_text()
        unknown = [word for word in words[2:] if word.startswith("--") and word not in text]
        return f"{words[1]} has no {unknown[0]}" if unknown else ""
    return ""


def mention_problem(span: str) -> str:
    """The same of a command in running text, which may leave out what it needs."""
    words = span.replace("[", " ").replace("]", " ").split()
    if len(words) < 2 or words[0] not in ("harness", "engine"):
        return ""
    command = _application(words[0])
    for at, word in enumerate(words[1:], 1):
        if not hasattr(command, "commands"):
            break
        if not re.fullmatch(r"[a-z][a-z-]*", word):
            return ""
        if word not in command.commands:
            return f"{' '.join(words[:at])} has no command {word}"
        command = command.commands[word]
    known = {"--help", "--debug"}
    known |= {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    asked = re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)
    unknown = [option for option in asked if option not in known]
    return f"no option {unknown[0]}" if unknown else ""


def _typer_problem(words: list[str]) -> str:
    command, arguments = _application(words[0]), [w for w in words[1:] if w != "--debug"]
    context = None
    try:
        while True:
            context = command.make_context(command.name, list(arguments), parent=context)
            if not hasattr(command, "commands"):
                return ""
            arguments = [*context._protected_args, *context.args]
            if not arguments:
                return "" if command.no_args_is_help else "no command"
            _, command, arguments = command.resolve_command(context, arguments)
    except TyperException as error:
        return error.format_message()
    except typer.Exit:  # --help
        return ""


def _mlx_lm_problem(arguments: list[str]) -> str:
    from mlx_lm.convert import configure_parser

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            configure_parser().parse_args(arguments)
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    return ""


@functools.cache
def _application(name: str) -> Any:
    return typer.main.get_command(import_module(f"{name}.cli").app)


def _made(name: str, root: Path) -> bool:
    """Whether a file is the reader's: beside the pages' commands, or in a folder that they make."""
    return "/" not in name or not (root / name).parent.is_dir()
