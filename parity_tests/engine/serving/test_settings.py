"""What a server is told when it starts."""

from __future__ import annotations

import pytest

from engine.errors import EngineError
from engine.serving.settings import Settings, is_loopback, read_keys


def test_only_this_machine_by_default():
    assert Settings().loopback and Settings().port == 11435 and not Settings().origins


@pytest.mark.parametrize(
    ("host", "own"),
    [("localhost", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("a.example", False), ("", False)],
)  # fmt: skip
def test_loopback(host, own):
    assert is_loopback(host) is own


def test_keys_are_lines(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# team\nfirst\n\n  second  \n")
    assert read_keys(file) == ("first", "second")


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"", "no API key"), (b"#\n", "no API key"), (b"ok\na b\n", "key 2"), ("é".encode(), "key 1"),
     (b"\xff\xfe", "no text")],
)  # fmt: skip
def test_what_is_no_key(tmp_path, content, named):
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(EngineError, match=named):
        read_keys(file)
