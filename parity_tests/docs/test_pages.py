"""The pages as a whole: every link leads somewhere, every page is in the site's navigation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from parity_tests.docs.pages import PAGES, ROOT

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
ALL = [*PAGES, ROOT / "CHANGELOG.md"]
CODE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else None
        missing = file is not None and not file.exists()
        if missing or (anchor and anchor not in anchors(file.read_text() if file else text)):
            wrong.append(target)
    return wrong


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as GitHub and the site make them."""
    masked = re.sub(r"^(```+).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.*)$", masked, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken_links(page.read_text(), page.parent) == []


def test_a_link_that_leads_nowhere_is_found():
    text = "# One two\n[a](#one-two) [b](#three) [c](docs/METHOD.md) [d](docs/LOST.md) `[e](x.md)`"
    assert broken_links(text, ROOT) == ["#three", "docs/LOST.md"]


def in_navigation(part: object) -> set[str]:
    if isinstance(part, str):
        return {part}
    parts = part.values() if isinstance(part, dict) else part
    return set().union(*map(in_navigation, parts))


def test_every_page_is_in_the_navigation_of_the_site():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    listed = in_navigation(settings["nav"])
    pages = {page.name for page in ALL}
    assert pages - listed == set(), "pages that `nav` of mkdocs.yml lacks"
    assert listed - pages == set(), "entries of `nav` in mkdocs.yml that are no page"


def test_readme_and_site_begin_with_the_same_page():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    assert list(settings["nav"][0].values()) == ["README.md"]
    assert all((ROOT / name).is_file() for name in TOP)
