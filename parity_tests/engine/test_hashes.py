"""Hashes of files, remembered: right after any change, cheap after none."""

from __future__ import annotations

import hashlib
import os
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import hashes
from engine.errors import EngineError

from ..conftest import no_room

pytestmark = pytest.mark.usefixtures("certificates")


@pytest.fixture
def at_once(monkeypatch):
    """Remember without waiting for the clock of the file system."""
    monkeypatch.setattr(hashes, "SETTLED", -1)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    return path


def test_a_hash_is_read_once(file, at_once, monkeypatch):
    found = hashes.sha256_of([file])
    assert found == {file: hashlib.sha256(b"one").hexdigest()}
    monkeypatch.setattr(hashes, "_digest", lambda path: pytest.fail("read again"))
    assert hashes.sha256_of([file]) == found and hashes.known_sha256(file) == found[file]


def test_what_takes_long_is_told(file, monkeypatch, capsys):
    digest = hashes._digest
    monkeypatch.setattr(hashes, "_digest", lambda path: (time.sleep(0.2), digest(path))[1])
    hashes.sha256_of([file])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(hashes, "PATIENCE", 0.01)
    hashes.sha256_of([file])
    assert capsys.readouterr().err == f"reading {file} for its sha256, which is remembered\n"


def test_a_file_that_is_still_warm_is_not_remembered(file):
    """It could change again within one tick of a coarse clock."""
    hashes.sha256_of([file])
    assert hashes.known_sha256(file) is None


def test_a_link_is_known_as_what_it_leads_to(file, at_once, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    digest = hashes.sha256_of([link])[link]
    assert hashes.known_sha256(file) == digest
    link.unlink()
    link.symlink_to(other := tmp_path / "other")
    other.write_bytes(b"two")
    assert hashes.known_sha256(link) is None


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=3), max_size=5), st.booleans())
def test_what_is_remembered_is_what_is_there(file, at_once, contents, back):
    """Of any size, with times set back or not, replaced or written over."""
    stat = file.stat()
    for i, content in enumerate(contents):
        target = file.with_suffix(".new") if i % 2 else file
        target.write_bytes(content)
        os.replace(target, file)
        if back:
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        expected = hashlib.sha256(content).hexdigest()
        assert hashes.known_sha256(file) in (None, expected)
        assert hashes.sha256_of([file])[file] == expected


@pytest.mark.parametrize("record", [b"", b"[]", b"{", b'{"%s": [[1], 2]}', b'{"%s": [1]}', b"\xff"])
def test_a_broken_record_is_as_none(file, at_once, certificates, record):
    certificates.mkdir()
    (certificates / hashes.RECORD).write_bytes(record.replace(b"%s", bytes(file)))
    assert hashes.known_sha256(file) is None
    hashes.sha256_of([file])
    assert hashes.known_sha256(file)


def test_a_record_that_cannot_be_written_costs_nothing(file, at_once, certificates):
    certificates.write_text("a file where the folder should be")
    assert hashes.sha256_of([file])[file] == hashlib.sha256(b"one").hexdigest()


def test_a_full_disk_costs_nothing_that_was_known(file, at_once, certificates, tmp_path):
    hashes.sha256_of([file])
    before = (certificates / hashes.RECORD).read_bytes()
    (other := tmp_path / "other").write_bytes(b"two")
    with no_room(len(before)):
        assert hashes.sha256_of([other])[other] == hashlib.sha256(b"two").hexdigest()
    assert hashes.known_sha256(other) is None and hashes.known_sha256(file) is not None
    assert [path.name for path in certificates.iterdir()] == [hashes.RECORD]
    hashes.sha256_of([other])
    assert hashes.known_sha256(other) is not None


def test_files_that_are_gone_are_forgotten(file, at_once, certificates, tmp_path):
    hashes.sha256_of([file])
    file.unlink()
    (other := tmp_path / "other").write_bytes(b"two")
    hashes.sha256_of([other])
    assert str(file) not in (certificates / hashes.RECORD).read_text()
    with pytest.raises(EngineError, match="is not there any more"):
        hashes.sha256_of([file])
