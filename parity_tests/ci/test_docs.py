"""ci/docs.py: how the site is built, of what, and that it asks nobody. The leg `docs` builds it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical

import docs

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, Requirement]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line[:1] not in ("", "#")]
    return {canonical(r.name): r for r in map(Requirement, lines)}


def test_versions_are_exact_and_those_of_the_other_environment():
    mine, others = pins("ci/docs-requirements.txt"), pins("constraints.txt")
    assert all(re.fullmatch(r"==[\d.]+(post\d+)?", str(r.specifier)) for r in mine.values())
    both = set(mine) & set(others)
    assert {n: str(mine[n].specifier) for n in both} == {n: str(others[n].specifier) for n in both}


def test_the_group_of_the_project_allows_them():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    for wanted in map(Requirement, groups["docs"]):
        pinned = str(pins("ci/docs-requirements.txt")[canonical(wanted.name)].specifier)
        assert pinned.removeprefix("==") in wanted.specifier


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ('<script src="assets/x.js"></script><img src=p.svg><a href="https://e.org">x</a>', []),
        ('<link rel="canonical" href="https://e.org/">', []),
        ('<link rel="stylesheet" href="https://e.org/f.css">', ["https://e.org/f.css"]),
        ("<script src=//e.org/x.js></script>", ["//e.org/x.js"]),
        ('<p><img alt="" src="http://e.org/p.png"></p>', ["http://e.org/p.png"]),
    ],
)
def test_what_would_be_fetched_elsewhere_is_found(html, found):
    assert docs.foreign(html) == found


def test_links_to_files_lead_to_the_repository_where_github_builds():
    assert "SITE_REPOSITORY" not in docs.variables({})
    assert docs.variables({"GITHUB_REPOSITORY": "me/it"})["SITE_REPOSITORY"] == (
        "https://github.com/me/it"
    )


def test_a_broken_build_or_a_foreign_address_fails(monkeypatch, tmp_path, capsys):
    def run(code: str) -> int:
        monkeypatch.setattr(docs, "build", lambda out: ["python3", "-c", code, str(out)])
        return docs.main(["--out", str(tmp_path)])

    monkeypatch.setattr(docs, "make_environment", lambda: "")
    assert run("raise SystemExit(1)") == 1
    write = "import sys, pathlib; pathlib.Path(sys.argv[1], 'index.html').write_text({!r})"
    assert run(write.format("<p>x</p>")) == 0
    assert capsys.readouterr().out.startswith("1 pages in ")
    assert run(write.format("<img src=https://e.org/p.png>")) == 1
    assert "index.html asks https://e.org/p.png" in capsys.readouterr().err
    monkeypatch.setattr(docs, "make_environment", lambda: "pip install failed")
    assert docs.main([]) == 2
