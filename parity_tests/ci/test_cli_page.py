"""ci/cli_page.py: docs/CLI.md is what the command lines are."""

from __future__ import annotations

import re
from pathlib import Path

import cli_page
import typer

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_what_the_code_gives():
    committed = (ROOT / "docs" / "CLI.md").read_text()
    assert committed == cli_page.page(), "python -m ci.cli_page > docs/CLI.md"


def test_a_command_and_its_options_are_on_the_page(monkeypatch):
    app = typer.Typer(help="Does things.")
    more = typer.Typer()
    app.add_typer(more, name="more")

    @app.command()
    def bake(bread: str, hot: bool = False) -> None:
        """Bake it.

        Twice.
        """

    @more.command("eat-up")
    def eat(how_many: int = typer.Option(3, help="Of\n them.")) -> None: ...

    monkeypatch.setattr(cli_page, "PROGRAMS", ("kitchen",))
    monkeypatch.setattr(cli_page, "import_module", lambda name: type("M", (), {"app": app}))
    page = cli_page.page()
    assert "- [`kitchen bake`](#kitchen-bake): Bake it.\n" in page
    assert "### kitchen bake\n\nBake it.\n\nTwice.\n" in page
    assert re.search(r"- `bread <str>` \(required\)\n- `--hot / --no-hot`", page)
    assert "### kitchen more eat-up\n" in page
    assert "- `--how-many <int>`: Of them. [default: 3]" in page
