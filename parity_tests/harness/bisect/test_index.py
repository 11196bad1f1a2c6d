"""What an index has: releases in order, and why some are not tried."""

from __future__ import annotations

import http.server
import json
import threading
from functools import partial

import pytest

from harness.bisect.index import releases
from harness.errors import IndexUnavailable


def known(package="tinyport"):
    return {str(r.version): r.skipped for r in releases(package)}


def test_releases_come_oldest_first_whatever_the_page_says(index):
    for version in ("1.10.0", "1.9.0", "0.2"):
        index.add(version)
    assert list(known()) == ["0.2", "1.9.0", "1.10.0"]
    assert set(known().values()) == {None}


def test_what_is_not_tried_has_its_reason(index):
    index.add("1.0")
    index.add("1.1", yanked="wrong <numbers>")
    index.add("1.2rc1")
    index.add("1.3", tag="cp311-cp311-win_arm64")
    index.add("1.4", pythons=">=9")
    index.link("tinyport-1.5.tar.gz")
    index.link("other-1.6-py3-none-any.whl")
    index.link("tinyport-not-a-wheel.whl")
    found = known()
    assert found["1.0"] is None
    assert found["1.1"] == "yanked: wrong <numbers>"
    assert found["1.2rc1"] == "a pre-release"
    assert "no wheel for" in found["1.3"] and "Python 3." in found["1.3"]
    assert found["1.4"] == "it needs Python >=9"
    assert found["1.5"] == "it has no wheel, sources alone"
    assert len(found) == 6


def test_one_file_that_is_not_yanked_is_enough(index):
    index.link("tinyport-1.0.tar.gz", yanked="")
    index.add("1.0")
    assert known() == {"1.0": None}


def test_a_name_may_be_spelt_in_any_way(index):
    index.add("1.0")
    assert list(known("TinyPort")) == ["1.0"]


def test_a_folder_of_wheels_is_read_too(index, tmp_path, monkeypatch):
    index.add("1.0")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "nothing").as_uri())
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder / "tinyport"))
    (index.folder / "tinyport" / "index.html").unlink()
    assert list(known()) == ["1.0"]


def test_pips_configuration_is_obeyed(index, tmp_path, monkeypatch):
    index.add("1.0")
    file = tmp_path / "pip.conf"
    file.write_text(f"[global]\nindex-url = https://127.0.0.1:9\n"
                    f"[install]\nindex-url = {index.folder.as_uri()}\n")  # fmt: skip
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.delenv("PIP_INDEX_URL")
    assert list(known()) == ["1.0"]


@pytest.mark.parametrize("form", ["json", "html"])
def test_an_index_is_read_over_http(index, monkeypatch, form):
    index.add("1.0")
    index.add("1.1", yanked="bad")

    class Simple(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if form == "html" or "json" not in self.headers["Accept"]:
                super().do_GET()
                return
            files = [
                {"filename": "tinyport-1.0-py3-none-any.whl", "yanked": False},
                {"filename": "tinyport-1.1-py3-none-any.whl", "yanked": "bad"},
            ]
            body = json.dumps({"files": files}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    handler = partial(Simple, directory=str(index.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{server.server_port}")
        assert known() == {"1.0": None, "1.1": "yanked: bad"}
        with pytest.raises(IndexUnavailable, match="has no release"):
            releases("nothing")
        server.shutdown()


def test_no_network_is_one_line_without_the_password(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(IndexUnavailable) as caught:
        releases("tinyport")
    told = str(caught.value)
    assert "127.0.0.1:9" in told and "--versions" in told and "secret" not in told
    assert "\n" not in told


def test_a_package_that_is_not_there_is_named(index):
    with pytest.raises(IndexUnavailable, match="'tinyport'"):
        releases("tinyport")
