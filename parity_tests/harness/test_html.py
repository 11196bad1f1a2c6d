"""`compare --html`: one page by itself, whatever the verdict; and a name is text, nothing more."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.report.html import as_html
from harness.types import (
    FAIL,
    ISOLATED,
    PASS,
    CheckResult,
    Divergence,
    Probe,
    Site,
    SiteDiff,
    TokenMap,
    Verdict,
)

OPEN = {"meta", "br"}  # without an end


class Page(HTMLParser):
    """The elements, attributes and texts of a page; every element must be closed where it began."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(data.decode())
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in OPEN:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(path) -> Page:
    data = path.read_bytes()
    page = Page(data)
    assert "script" not in page.tags and not page.attributes & {"src", "href", "onload"}
    assert not re.search(rb"https?:|url\(|@import|[^a-z]nan[^a-z]", data)
    return page


def test_a_passing_page_has_every_section(command, tmp_path, tiny_llama):
    out = tmp_path / "page.html"
    asked = ("--checks", "tokens,blocks,logits,greedy", "--html", out)
    assert command("harness", "compare", "--model", tiny_llama, *asked).status == 0
    page = read(out)
    place = page.text.index("PASS: parity holds")
    for section in ("Checks", "Error against noise", "Tokens and layers", "Logits",
                    "Greedy tokens", "Tokenizer", "Environment"):  # fmt: skip
        assert place < (place := page.text.index(section, place)), section
    assert "64 of 64 tokens equal" in page.text and "block 3" in page.text
    assert b'class="dot off" cx="9"' in out.read_bytes()  # the legend alone
    assert out.read_bytes().count(b"dot off") == 1
    assert list(tmp_path.iterdir()) == [out]


def test_a_failing_page_says_first_what_is_wrong(command, random_model, tmp_path):
    model, out = random_model("mistral", "window"), tmp_path / "page.html"
    result = command(
        *("harness", "compare", "--model", model, "--candidate", "mlx-lm", "--html", out),
        *("--checks", "blocks,greedy"),
    )
    assert result.status == 1
    page = read(out)
    assert page.text.index("First divergence") < page.text.index("Likely cause")
    assert page.text.index("Likely cause") < page.text.index("Checks")
    data = out.read_text()
    assert data.count("dot off") > 3 and "≠" in page.text
    # mlx-lm's mask lets the ninth token see the first, which a window of 8 hides.
    shown = re.findall(r'title="model.layers.0">.*?</svg>', data)
    heat = next(row for row in shown if "<title>token 0 " in row)
    cells = re.findall(r'class="(h\d)".*?<title>token (\d+) ', heat)
    assert {shade for shade, token in cells if int(token) < 8} <= {"h0", "h1", "h2"}
    assert {shade for shade, token in cells if int(token) >= 8} == {"h6"}


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_is_a_page_too(command, tmp_path, old):
    out = tmp_path / "page.html"
    if old:
        out.write_bytes(old)
    result = command("harness", "compare", "--model", "nowhere<b>", "--html", out)
    assert result.status == 2
    page = read(out)
    assert "ERROR: the comparison could not be run" in page.text and "'nowhere<b>'" in page.text
    assert "b" not in page.tags


def test_what_is_open_is_a_page_too(command, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.sides.installed", lambda *names: False, raising=True)
    out = tmp_path / "page.html"
    asked = ("--reference", "mlx-lm", "--checks", "blocks", "--html", out)
    assert command("harness", "compare", "--model", tiny_llama, *asked).status == 3
    assert "INCONCLUSIVE" in read(out).text


def test_a_hostile_name_is_a_name(command, tiny_llama, tmp_path):
    name = "<img src=x onerror=alert(1)>\"'&\x1b[31m"
    shutil.copytree(tiny_llama, tmp_path / name)
    out = tmp_path / "page.html"
    asked = ("--checks", "weights", "--html", out)
    assert command("harness", "compare", "--model", tmp_path / name, *asked).status == 0
    page = read(out)
    assert "img" not in page.tags
    assert "<img src=x onerror=alert(1)>\"'&\ufffd[31m" in page.text


@pytest.mark.parametrize("where", ["no/such/page.html", "."])
def test_a_page_that_cannot_be_written_is_known_first(command, tmp_path, where):
    result = command("harness", "compare", "--model", "tiny-llama", "--html", tmp_path / where)
    assert result.status == 2 and len(result.err.splitlines()) == 1 and "--html" in result.err
    assert list(tmp_path.iterdir()) == []


ratios = st.lists(st.none() | st.floats(0, allow_nan=False), min_size=1, max_size=150)


@settings(max_examples=30)
@given(st.text(), ratios, st.floats(1e-30, 1e30), st.floats(0, allow_nan=False))
def test_any_text_and_any_number_make_a_page(word, each, noise, error):
    site = Site("block", 0, "", word)
    verdict = Verdict(word, word, word, word, word, diagnosis=word)
    divergence = Divergence(word, word, word, code=word)
    steps = [[1, 2, error, False], [1, 2, noise, True]]
    verdict.checks = [
        CheckResult(word, PASS, word, dtype=word),
        CheckResult("greedy", FAIL, word, {"steps": steps}, word, divergence),
        CheckResult("tokens", FAIL, word, {"questions": {word: [word, 1, 1]}}),
    ]
    diff = SiteDiff(site, ISOLATED, word, word, error, noise, error / noise, 3.0, FAIL)
    verdict.sites = [diff]
    probe = Probe(word, word, word, tuple(range(len(each))))
    verdict.token_maps = [TokenMap(probe, ISOLATED, word, 3.0, {site: tuple(each)})]
    verdict.environment = {"packages": {word: word}}
    page, plain = Page(as_html(verdict)), Page(as_html(Verdict("", "", "", "", "")))
    assert not set(page.tags) & {"script", "img", "a"} and set(plain.tags) < set(page.tags)
