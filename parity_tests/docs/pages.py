"""Pages of Markdown as blocks of code with what is said of them; runs nothing.

HTML comments above a block, which no reader of the page sees, say what is to be done with it:

    <!-- not run: REASON -->          only the names of commands and options are looked at
    <!-- full run: REASON -->         run under `pytest -m full` alone
    <!-- exit status N -->            of the block's last command; 0 where nothing is said
    <!-- with WORD=VALUE ... -->      a word of the block that stands for something
    <!-- before: COMMANDS -->         run first, one a line, in the same folder
    <!-- output -->                   the block is what the one before it printed
    <!-- output varies: REASON -->    run, and what is shown is not compared
    <!-- write FILE -->               the block is written to a file
    <!-- edit FILE -->                the block is a diff, and is applied to a file
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])

SHELLS = {"sh", "bash", "shell", "console"}
PROGRAMS = r"harness|engine|python3?|pytest|pip|ruff|pyright|curl|git|mlx_lm\.\w+"
COMMAND = re.compile(rf"^\$ |^(\w+=\S+ )*({PROGRAMS})( |$)")
COMMENT = re.compile(r"<!-- *(.*?) *-->", re.DOTALL)
WORDS = "not run|full run|exit status|with|before|output varies|output|write|edit"
SAID = re.compile(rf"({WORDS})(?![\w-]):? *(.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """One command of a block, and what the page shows of its output."""

    line: str
    at: int
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A block of code; `said` is what comments above it say, by word."""

    page: str
    at: int  # the line of its fence
    language: str
    lines: tuple[str, ...]
    said: dict[str, str]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.at}"

    @property
    def is_shell(self) -> bool:
        """Whether readers take it for commands: by its language, without one by its look."""
        if self.language:
            return self.language in SHELLS
        return any(map(COMMAND.match, self.lines))

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)

    def commands(self) -> list[Command]:
        """With `$ ` in front of any line, the others are output.

        A line that ends in a backslash goes on, and so does one whose quotes are still open.
        """
        session = any(line.startswith("$ ") for line in self.lines)
        found: list[Command] = []
        for at, line in enumerate(self.lines, self.at + 1):
            last = found[-1] if found else Command("", at)
            if last.line.endswith("\\"):
                found[-1] = Command(f"{last.line[:-1].rstrip()} {line.strip()}", last.at)
            elif _has_open_quotes(last.line):
                found[-1] = Command(f"{last.line}\n{line}", last.at)
            elif session and not line.startswith("$ "):
                if found:
                    found[-1] = Command(last.line, last.at, (*last.shown, line))
            elif line.strip() and not line.startswith("#"):
                found.append(Command(line.removeprefix("$ "), at))
        return [Command(self._meant(c.line), c.at, c.shown) for c in found]

    def before(self) -> list[Command]:
        """What the reader is not shown and the block needs."""
        lines = self.said.get("before", "").splitlines()
        return [Command(line.strip(), self.at) for line in lines if line.strip()]

    def _meant(self, line: str) -> str:
        for pair in self.said.get("with", "").split():
            word, _, value = pair.partition("=")
            line = re.sub(rf"\b{re.escape(word)}\b", value, line)
        return line


def _has_open_quotes(line: str) -> bool:
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True
    return False


def blocks(text: str, page: str) -> Iterator[Block]:
    """Every fenced and every indented block of a page, in order.

    Raises ValueError for a comment above a block that means nothing.
    """
    lines = text.splitlines()
    said: dict[str, str] = {}
    at = 0
    while at < len(lines):
        line = lines[at]
        if fence := re.match(r"^( *)(```+|~~~+) *([\w-]*)", line):
            indent, mark, language = fence.groups()
            end = next(
                (n for n in range(at + 1, len(lines)) if lines[n].strip() == mark), len(lines)
            )
            inside = (text.removeprefix(indent) for text in lines[at + 1 : end])
            yield Block(page, at + 1, language, tuple(inside), said)
            said, at = {}, end + 1
        elif line.startswith("    ") and (not at or not lines[at - 1].strip()):
            end = next((n for n in range(at, len(lines)) if not lines[n].startswith("    ")), None)
            yield Block(page, at, "", tuple(text[4:] for text in lines[at:end]), said)
            said, at = {}, len(lines) if end is None else end
        elif line.startswith("<!--"):
            end = next(n for n in range(at, len(lines)) if "-->" in lines[n])
            comment = COMMENT.search("\n".join(lines[at : end + 1]))
            if comment and (match := SAID.fullmatch(comment[1])):
                said = {**said, match[1]: match[2]}
            at = end + 1
        else:
            if line.strip() and said:
                raise ValueError(f"{page}:{at + 1}: <!-- {next(iter(said))} --> above no block")
            at += 1


def of_page(path: Path) -> list[Block]:
    return list(blocks(path.read_text(), path.relative_to(ROOT).as_posix()))


def spans(text: str) -> Iterator[tuple[int, str]]:
    """Inline code outside blocks, with its line; a span may go over two lines."""
    masked = re.sub(
        r"^( *)(```+|~~~+).*?^ *\2 *$",
        lambda match: "\n" * match[0].count("\n"),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", masked):
        yield masked.count("\n", 0, match.start()) + 1, " ".join(match[1].split())
