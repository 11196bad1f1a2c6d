"""The reference of both command lines, made of the code: `python -m ci.cli_page > docs/CLI.md`.

What `--help` says is all there is: a word that is wrong on the page is wrong in the command. Runs
no command, and imports neither MLX nor PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

PROGRAMS = ("harness", "engine")
HEAD = """\
<!-- Made by `python -m ci.cli_page > docs/CLI.md`; do not edit. -->

# Command lines

What `--help` says of every command. Results go to stdout, everything else to stderr; an error is
one line there and exit status 2, and `--debug`, anywhere on the line, shows where it came from.
"""


def main() -> None:
    print(page(), end="")


def page() -> str:
    """The whole page, as Markdown."""
    import typer

    parts = [HEAD]
    for name in PROGRAMS:
        group = typer.main.get_command(import_module(f"{name}.cli").app)
        parts += [f"## {name}\n", *_paragraphs(group), _contents(group, name)]
        for words, command in commands(group, name):
            parts += _section(words, command)
    return "\n".join(parts)


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that call it, in the order of `--help`."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def _contents(group: Any, name: str) -> str:
    return "".join(
        f"- [`{words}`](#{words.replace(' ', '-')}): {_paragraphs(command)[0]}"
        for words, command in commands(group, name)
    )


def _section(words: str, command: Any) -> Iterator[str]:
    """A command: its help, then its arguments and options, as typer puts them."""
    yield f"### {words}\n"
    yield from _paragraphs(command)
    context = command.context_class(command, info_name=words)
    records = [param.get_help_record(context) for param in command.params]
    yield "\n".join(_line(*record) for record in records if record) + "\n"


def _line(declared: str, says: str) -> str:
    required = "[required]" in says
    says = " ".join(says.replace("[required]", "").split())
    return f"- `{declared}`" + (" (required)" if required else "") + (f": {says}" if says else "")


def _paragraphs(command: Any) -> list[str]:
    return [f"{' '.join(part.split())}\n" for part in (command.help or "").split("\n\n")]


if __name__ == "__main__":
    sys.exit(main())
