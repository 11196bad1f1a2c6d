"""The page in a real browser, in light and dark, on a phone and on a desk."""

from __future__ import annotations

import struct
import zlib
from html.parser import HTMLParser

import httpx2
import pytest

from engine.serving.page import _FILE
from parity_tests.engine.serving.browser import chromium, installed
from parity_tests.engine.serving.conftest import eventually, running, serving
from parity_tests.engine.serving.standin import Worker, said

needs_chromium = pytest.mark.skipif(installed() is None, reason="no Chromium is installed")
SCREENS = [(1280, 800, False), (390, 844, True)]
READY = "$('state').textContent == 'ready'"
ANSWER = ["It ", "is <b>bold</b>", " & ", "plain.\n", "  x" * 40]


@pytest.fixture
def browser(tmp_path):
    with chromium(tmp_path / "profile") as browser:
        yield browser


def shade(path) -> int:
    """How light the top left pixel of a PNG is, 0 to 255."""
    data = path.read_bytes()
    at, packed = 8, b""
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        packed += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    return zlib.decompress(packed)[1]


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height", "phone"), SCREENS)
def test_a_chat_and_the_metrics(service, browser, tmp_path, dark, width, height, phone):
    worker = Worker(lambda request: said(*ANSWER), delay=0.01)
    with running(service(worker)) as url:
        browser.open(url, width=width, height=height, dark=dark, phone=phone)
        browser.wait(READY)
        browser.type("Hello, <i>you</i>")
        browser.wait("!running && turns.length == 2")
        said_last = "[...document.querySelectorAll('.said')].at(-1)"
        assert browser.run(f"{said_last}.textContent") == "".join(ANSWER)
        assert browser.run(f"{said_last}.children.length") == 0  # text of a model is no HTML
        assert browser.run("document.querySelector('.user .said').textContent") == (
            "Hello, <i>you</i>"
        )
        assert "5 tokens" in browser.run("document.querySelector('.assistant .note').textContent")
        across = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert browser.run(across)
        browser.picture(tmp_path / "chat.png")
        assert (shade(tmp_path / "chat.png") < 100) == dark

        browser.type("more")
        browser.wait("!running && turns.length == 4")
        assert len(worker.requests[1].prompt) > len(worker.requests[0].prompt) + 20
        if phone:
            assert not browser.run("$('m-rate').checkVisibility()")
            browser.run("$('figures').click()")
        assert browser.run("$('m-rate').checkVisibility()")
        browser.wait("$('m-rate').textContent == '12.5'")
        shown = browser.run("document.querySelector('aside').innerText")
        for text in ("2 of 8", "3 of 64", "25 %", "3.0 MiB", "1.0 GiB", "12,345"):
            assert text in shown
        browser.run("$('fresh').click()")
        assert browser.run("turns.length") == 0
    assert not browser.said
    assert all(asked.startswith(url) for asked in browser.asked)


@needs_chromium
def test_stop_frees_the_row(service, browser):
    worker = Worker(lambda request: said(*["word "] * 1000), delay=0.02)
    with running(service(worker)) as url:
        browser.open(url, width=800, height=600, dark=False, phone=False)
        browser.wait(READY)
        browser.type("go on")
        browser.wait("document.querySelector('.assistant .said')?.textContent.length > 20")
        browser.run("$('send').click()")
        browser.wait("!running")
        assert eventually(lambda: worker.tickets[0].cancelled)
        assert browser.run("document.querySelector('.assistant .note').textContent.endsWith"
                           "('stopped')")  # fmt: skip


@needs_chromium
def test_errors_are_shown_where_the_answer_would_be(service, browser):
    worker = Worker(lambda request: said("x"), room=0)
    with running(service(worker, keys=("a-key",))) as url:
        browser.open(url, width=800, height=600, dark=False, phone=False)
        browser.wait("$('state').textContent == 'API key needed'")
        browser.type("hello")
        browser.wait("document.querySelector('.note.bad')?.textContent.includes('no API key')")
        browser.run("$('key').value = 'a-key'")
        browser.type("hello")
        browser.wait("[...document.querySelectorAll('.note.bad')].at(-1).textContent"
                     ".includes('wait already')")  # fmt: skip
        browser.wait("$('state').textContent == 'ready'")
    browser.wait("$('state').textContent == 'not reached'")


@needs_chromium
def test_a_model_without_template_continues_texts(browser, tiny_llama):
    with serving("--model", tiny_llama) as process:
        browser.open(process.url, width=800, height=600, dark=False, phone=False)
        browser.wait(READY)
        browser.wait("document.querySelector('.hello').textContent.includes('continues')")
        browser.run("$('temperature').value = 0; $('tokens').value = 12")
        browser.type("def main(")
        browser.wait("!running && turns.length == 2")
        body = {"prompt": "def main(", "max_tokens": 12, "temperature": 0}
        told = httpx2.post(process.url + "/v1/completions", json=body, trust_env=False).json()
        assert browser.run("turns[1].content") == told["choices"][0]["text"]


def test_the_page_asks_nobody_else():
    class Links(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            self.found += [value for name, value in attrs if name in ("src", "href") and value]

    page = _FILE.read_text()
    Links().feed(page)
    assert all(link.startswith("data:") for link in Links.found) and Links.found
    assert "@import" not in page and "url(" not in page


def test_the_browser_is_told_so_too(service):
    from starlette.testclient import TestClient

    from engine.serving.app import application

    app = application(service(Worker(lambda request: said("x"))))
    told = TestClient(app, base_url="http://localhost").get("/")
    assert told.headers["content-type"].startswith("text/html")
    policy = told.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
