"""What mkdocs is told beyond mkdocs.yml: pages that lie outside docs/, and links between them.

The pages are written for the tree, as GitHub shows it: README.md links to `docs/METHOD.md`, and
that to `../CONTRIBUTING.md`. Here the pages of the top lie beside the others, so links are turned.
One to a file that is no page goes to the repository where its address is known, else it stays as
text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")  # of the top
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
CODE = re.compile(r"(^ *(```+|~~~+).*?^ *\2 *$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Put the pages of the top beside the others."""
    # mkdocs is in the environment of ci/docs.py alone.
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    known = {file.src_uri for file in files}
    folder = "" if page.file.src_uri in PAGES else "docs"
    return turned(markdown, folder, known, config.repo_url or "")


def turned(text: str, folder: str, known: set[str], repository: str) -> str:
    """A page with its links as the site has them; `folder` is the page's own in the tree."""

    def link(match: re.Match[str]) -> str:
        mark, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        name = path if path in PAGES else path.removeprefix("docs/")
        if name in known and (name != path or path in PAGES):
            return f"{mark}[{words}]({name}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # mkdocs tells what is missing
        return f"[{words}]({repository}/blob/main/{path}{anchor})" if repository else words

    parts = CODE.split(text)  # a group of the fence comes along: text, code, fence, text ...
    return "".join(
        LINK.sub(link, part) if at % 3 == 0 else part
        for at, part in enumerate(parts)
        if at % 3 != 2 and part is not None
    )
