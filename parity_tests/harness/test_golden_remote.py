"""Goldens over the network: resumed, hashed before use, and nothing here spoilt by what comes."""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import json
import os
import pkgutil
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from harness.errors import BadGolden
from harness.golden.manifest import NAME, read_manifest
from harness.golden.remote import Shared, pull, push

ONE, TWO = "traces/one.torch.float32.safetensors", "traces/two.torch.float32.safetensors"
DATA = {ONE: os.urandom(300_000), TWO: os.urandom(70_000)}


def entry(file, data, **changes):
    return {
        "file": file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "model": Path(file).name.split(".")[0],
        "weights": hashlib.sha256(ascii(file).encode()).hexdigest(),
        "dtype": "float32",
        "reference": "torch",
        **changes,
    }


def manifest_of(*entries, schema="harness.manifest/1"):
    return json.dumps({"schema": schema, "goldens": entries}, indent=1).encode()


def write(folder, data=None, **changes):
    """A golden folder with these files."""
    data = DATA if data is None else data
    (folder / "traces").mkdir(parents=True)
    for file, content in data.items():
        (folder / file).write_bytes(content)
    entries = [entry(file, content, **changes) for file, content in data.items()]
    (folder / NAME).write_bytes(manifest_of(*entries))
    return folder


def contents(folder):
    """Every file below a folder, hidden ones too, without the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def entries_of(folder):
    return {each["file"]: each for each in read_manifest(folder)["goldens"]}


def refused(call, *arguments, **options):
    """The one line that a push or a pull is refused with."""
    with pytest.raises(BadGolden) as caught:
        call(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    return line


class Server:
    """A web server that can misbehave with traces in one way at a time."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.cut: int | None = None  # bytes after which a connection breaks
        self.extra = 0  # bytes beyond what was promised
        self.status: dict[str, int] = {}
        self.hang = False
        self.move: dict[str, str] = {}  # redirects
        self.asked: list[tuple[str, str | None]] = []  # path, Range
        self.queries: list[str] = []
        self.tokens: list[str | None] = []
        self.released = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("H", (Handler,), {"far": self}))
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # clients that hang up
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path):
        """The path of a file that is kept, or (status, headers, body)."""
        return path


class Handler(BaseHTTPRequestHandler):
    far: Server

    def log_message(self, format, *args):
        pass

    def reply(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.reply(*self.far.post(self.path, self.read_body(length)))  # type: ignore[attr-defined]

    def read_body(self, length):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_GET(self):
        far, path = self.far, unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range")
        far.asked.append((path, asked))
        far.queries.append(urlsplit(self.path).query)
        far.tokens.append(self.headers.get("Authorization"))
        found = far.answer(path)
        if isinstance(found, tuple):
            return self.reply(*found)
        if found in far.move:
            return self.reply(302, [("Location", far.move[found])])
        name = found.rpartition("/")[2]
        if status := far.status.get(name):
            return self.reply(status)
        if found not in far.files:
            return self.reply(404)
        data, trace = far.files[found], name != NAME
        begin = int(asked[6:-1]) if asked and far.ranges else 0
        if begin and begin >= len(data):
            return self.reply(416)
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        if not (far.extra and trace):
            self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        body = data[begin:]
        if trace and far.cut is not None:
            body = body[: far.cut]
        if trace and far.hang:
            self.wfile.write(body[:1000])
            self.wfile.flush()
            far.released.wait(20)
        elif trace and far.extra:
            self.wfile.write(body + b"x" * far.extra)
        else:
            self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def serve():
    """`serve()` starts a server, `serve(Hub)` a Hub."""
    from huggingface_hub.utils import close_session

    started = []

    def start(kind=Server):
        started.append(kind())
        return started[-1]

    yield start
    close_session()
    for server in started:
        server.close()


@pytest.fixture
def web(serve):
    server = serve()
    server.files = {f"/goldens/{file}": data for file, data in DATA.items()}
    server.files[f"/goldens/{NAME}"] = manifest_of(*(entry(f, d) for f, d in DATA.items()))
    server.source = f"{server.url}/goldens"
    return server


# Any far end


@pytest.fixture(params=["folder", "file", "memory"])
def far(request, tmp_path):
    """An address that can be pushed to."""
    if request.param == "memory":
        import fsspec

        yield "memory://goldens/some"
        fsspec.filesystem("memory").store.clear()
    else:
        path = tmp_path / "there" / "deeper"
        yield str(path) if request.param == "folder" else path.as_uri()


def test_what_is_pushed_can_be_pulled(far, tmp_path):
    here, elsewhere = write(tmp_path / "here"), tmp_path / "elsewhere"
    place = far if "://" in far else str(Path(far).resolve())
    assert push(here, far) == Shared(place, [ONE, TWO], [])
    assert pull(far, elsewhere) == Shared(place, [ONE, TWO], [])
    assert contents(elsewhere) == DATA
    recorded = {file: {**e, "source": place} for file, e in entries_of(here).items()}
    assert entries_of(elsewhere) == recorded


def test_nothing_moves_twice(far, tmp_path):
    here, elsewhere = write(tmp_path / "here"), tmp_path / "elsewhere"
    push(here, far)
    assert push(here, far).kept == [ONE, TWO]
    pull(far, elsewhere)
    before = (elsewhere / ONE).stat().st_ino, (elsewhere / NAME).stat().st_mtime_ns
    again = pull(far, elsewhere)
    assert (again.moved, again.kept) == ([], [ONE, TWO])
    assert ((elsewhere / ONE).stat().st_ino, (elsewhere / NAME).stat().st_mtime_ns) == before


def test_a_part_from_before_is_continued(far, tmp_path):
    here, elsewhere = write(tmp_path / "here"), tmp_path / "elsewhere"
    push(here, far)
    part = part_of(elsewhere, ONE)
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA[ONE][:1000])
    pull(far, elsewhere)
    assert contents(elsewhere) == DATA


def test_one_model_alone(far, tmp_path):
    here = write(tmp_path / "here")
    assert push(here, far, model="two").moved == [TWO]
    assert push(here, far, model="golden/models/one").moved == [ONE]
    assert pull(far, tmp_path / "elsewhere", model="one").moved == [ONE]
    assert contents(tmp_path / "elsewhere") == {ONE: DATA[ONE]}
    line = refused(pull, far, tmp_path / "elsewhere", model="three")
    assert "no golden of model 'three'" in line and "['one', 'two']" in line


def test_push_adds_to_what_others_pushed(far, tmp_path):
    push(write(tmp_path / "a", {ONE: DATA[ONE]}), far)
    push(write(tmp_path / "b", {TWO: DATA[TWO]}), far)
    assert pull(far, tmp_path / "elsewhere").moved == [ONE, TWO]


def test_push_replaces_an_older_recording_of_the_same_weights(far, tmp_path):
    push(write(tmp_path / "here"), far)
    assert push(write(tmp_path / "newer", {ONE: b"newer"}), far).moved == [ONE]
    pull(far, tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere") == {ONE: b"newer", TWO: DATA[TWO]}


def test_a_missing_file_there_is_sent_again(tmp_path):
    here, there = write(tmp_path / "here"), tmp_path / "there"
    push(here, str(there))
    (there / ONE).unlink()
    assert push(here, str(there)).moved == [ONE]


def test_neither_end_loses_a_golden_of_other_weights(far, tmp_path):
    push(write(tmp_path / "here"), far)
    other = write(tmp_path / "other", {ONE: b"mine"}, weights="e" * 64)
    assert "of other weights ('eeeeeeeeeeee'" not in (line := refused(push, other, far))
    assert ONE in line and "not 'eeeeeeeeeeee'" in line
    assert "of other weights ('eeeeeeeeeeee'" in refused(pull, far, other)
    assert contents(other) == {ONE: b"mine"}
    pull(far, tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere") == DATA


# Push


def test_push_sends_nothing_that_is_not_whole(tmp_path):
    here = write(tmp_path / "here")
    (here / TWO).write_bytes(DATA[TWO][:-1])
    assert "altered or cut short" in refused(push, here, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_push_refuses_a_wrong_size_in_the_manifest(tmp_path):
    here = write(tmp_path / "here", bytes=5)
    assert "the manifest says 5" in refused(push, here, str(tmp_path / "there"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("where", ["mv", "open"])
def test_an_interrupted_push_leaves_what_was_there(tmp_path, monkeypatch, error, where):
    from fsspec.implementations.local import LocalFileSystem

    there = tmp_path / "there"
    push(write(tmp_path / "here"), str(there))
    before = contents(there), (there / NAME).read_bytes()
    newer = write(tmp_path / "newer", {ONE: b"newer", TWO: b"newer still"})
    original = getattr(LocalFileSystem, where)

    def stop(self, path, *rest, **options):
        if "wb" in rest or where == "mv":
            if where == "open":
                Path(path).write_bytes(b"half")
            raise error
        return original(self, path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, where, stop)
        with pytest.raises((KeyboardInterrupt, BadGolden)):
            push(newer, str(there))
    assert (contents(there), (there / NAME).read_bytes()) == before
    assert push(newer, str(there)).moved == [ONE, TWO]


def test_push_refuses_a_far_manifest_that_is_none(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / NAME).write_text("mine")
    assert "is not a manifest" in refused(push, write(tmp_path / "here"), str(there))
    assert contents(there) == {} and (there / NAME).read_text() == "mine"


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("http://127.0.0.1:9/x", "can only be pulled from"),
        ("nosuch://x", "nosuch"),
        ("s3://bucket/x", "needs a package that is not installed: Install s3fs"),
        ("hf://name", "write hf://datasets/OWNER/NAME"),
        ("hf://datasets/a/b/c", "write hf://datasets/OWNER/NAME"),
    ],
)
def test_addresses_that_cannot_be_pushed_to(tmp_path, to, words):
    assert words in refused(push, write(tmp_path / "here"), to)


def test_a_revision_goes_with_the_hub(tmp_path):
    line = refused(pull, "https://user:secret@host/x?key=secret", tmp_path, revision="v1")
    assert "leave --revision out" in line and "secret" not in line
    assert "differ" in refused(pull, "hf://a/b@v2", tmp_path, revision="v1")


# Pull from a web server


def part_of(folder, file):
    sha = hashlib.sha256(DATA[file]).hexdigest()
    return folder / "traces" / f".{Path(file).name}.{sha[:16]}.part"


def test_pull_from_the_web(web, tmp_path):
    seen = []
    result = pull(web.source + "/", tmp_path, progress=lambda *a: seen.append(a))
    assert result == Shared(web.source, [ONE, TWO], [])
    assert contents(tmp_path) == DATA
    assert seen[-1] == (370_000, 370_000, TWO) and seen == sorted(seen)
    assert set(web.tokens) == {None}


def test_a_query_goes_with_every_request_and_into_no_record(web, tmp_path):
    place = pull(web.source.replace("://", "://user:pw@") + "?sig=secret", tmp_path).place
    assert place == web.source
    assert {each["source"] for each in entries_of(tmp_path).values()} == {place}
    assert set(web.queries) == {"sig=secret"}
    assert set(web.tokens) == {"Basic " + base64.b64encode(b"user:pw").decode()}


def test_a_pull_that_broke_off_goes_on_where_it_was(web, tmp_path):
    web.status[Path(TWO).name] = 503
    web.cut, cut = 100_000, 100_000
    assert "503" in refused(pull, web.source, tmp_path)
    assert [asked for path, asked in web.asked if path.endswith(ONE)] == [
        None,
        f"bytes={cut}-",
        f"bytes={2 * cut}-",
    ]
    web.status.clear()
    result = pull(web.source, tmp_path)
    assert (result.moved, result.kept) == ([TWO], [ONE])
    assert contents(tmp_path) == DATA


def test_a_part_is_kept_and_continued(web, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.golden.remote.TRIES", 1)
    web.cut = 120_000
    assert ONE in refused(pull, web.source, tmp_path)
    assert contents(tmp_path) == {
        part_of(tmp_path, ONE).relative_to(tmp_path).as_posix(): DATA[ONE][:120_000]
    }
    assert not (tmp_path / NAME).exists()
    web.cut = None
    pull(web.source, tmp_path)
    assert (f"/goldens/{ONE}", "bytes=120000-") in web.asked
    assert contents(tmp_path) == DATA


def test_a_server_without_ranges_starts_again(web, tmp_path):
    web.ranges = False
    part = part_of(tmp_path, ONE)
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 200_000)
    pull(web.source, tmp_path)
    assert contents(tmp_path) == DATA


def test_a_server_without_ranges_that_breaks_off_is_given_up(web, tmp_path):
    web.ranges, web.cut = False, 100_000
    refused(pull, web.source, tmp_path)
    assert len([path for path, _ in web.asked if path.endswith(ONE)]) == 2


@pytest.mark.parametrize("answer", [(416, ()), (206, [("Content-Range", "bytes 7-9/10")])])
def test_a_useless_answer_to_a_range_starts_again(web, tmp_path, answer):
    part = part_of(tmp_path, ONE)
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA[ONE][:1000])
    spoilt = []

    def useless(path):
        if path.endswith(ONE) and not spoilt:
            spoilt.append(path)
            return (*answer, b"???")
        return path

    web.answer = useless
    pull(web.source, tmp_path)
    assert contents(tmp_path) == DATA


def old_golden(folder):
    """A folder with an older, good recording of the first file."""
    return contents(write(folder, {ONE: b"old"})), (folder / NAME).read_bytes()


def flipped(web):
    data = bytearray(DATA[ONE])
    data[1234] ^= 1
    web.files[f"/goldens/{ONE}"] = bytes(data)
    return "came with sha256"


def too_long(web):
    web.extra = 5_000_000
    return "goes on after the 300,000 bytes"


def too_short(web):
    web.files[f"/goldens/{ONE}"] = DATA[ONE][:-1]
    return "ended before its 300,000 bytes"


def hanging(web):
    web.hang = True
    return "timed out"


def missing(web):
    del web.files[f"/goldens/{ONE}"]
    return "does not exist"


def forbidden(web):
    web.status[Path(ONE).name] = 403
    return "not open to you"


def failing(web):
    web.status[Path(ONE).name] = 500
    return "HTTP status 500"


def gone(web):
    web.close()
    return "check the address and the network"


@pytest.mark.parametrize(
    "spoil", [flipped, too_long, too_short, hanging, missing, forbidden, failing, gone]
)
def test_a_bad_server_is_one_line_and_the_old_golden_stays(web, tmp_path, monkeypatch, spoil):
    if spoil is hanging:
        monkeypatch.setattr("harness.golden.far_ends.TIMEOUT", 0.3)
    before = old_golden(tmp_path / "here")
    words = spoil(web)
    line = refused(pull, web.source, tmp_path / "here")
    assert words in line and (ONE in line or spoil is gone)
    now = {f: d for f, d in contents(tmp_path / "here").items() if not f.endswith(".part")}
    assert (now, (tmp_path / "here" / NAME).read_bytes()) == before


def test_the_wrong_bytes_are_deleted_and_both_hashes_named(web, tmp_path):
    flipped(web)
    line = refused(pull, web.source, tmp_path)
    for data in (DATA[ONE], web.files[f"/goldens/{ONE}"]):
        assert hashlib.sha256(data).hexdigest()[:12] in line
    assert contents(tmp_path) == {}


def test_what_is_sent_beyond_the_promise_is_not_taken(web, tmp_path):
    web.extra = 5_000_000
    seen = []
    refused(pull, web.source, tmp_path, progress=lambda done, total, what: seen.append(done))
    assert max(seen, default=0) <= 300_000
    assert contents(tmp_path) == {}


def test_offline_is_one_line(web, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(pull, "hf://owner/name", tmp_path)
    pull(web.source, tmp_path)  # of the Hub alone


def test_no_room_is_said_before_anything_is_fetched(web, tmp_path, monkeypatch):
    class Usage:
        free = 369_999

    monkeypatch.setattr("harness.golden.remote.shutil.disk_usage", lambda path: Usage)
    line = refused(pull, web.source, tmp_path)
    assert "370,000" in line and "369,999" in line
    assert {path for path, _ in web.asked} == {f"/goldens/{NAME}"}
    part_of(tmp_path, ONE).write_bytes(DATA[ONE][:1])
    assert pull(web.source, tmp_path).moved == [ONE, TWO]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize(
    "where", ["manifest.os.replace", "manifest.add_entry", "remote.install", "remote._sha256"]
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_interrupted_pull_leaves_the_old_golden(web, tmp_path, monkeypatch, error, where, after):
    folder = tmp_path / "here"
    before = old_golden(folder)
    original = pkgutil.resolve_name(f"harness.golden.{where}")
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            return original(*arguments)
        if after:
            original(*arguments)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(f"harness.golden.{where}", stop)
        with pytest.raises((KeyboardInterrupt, BadGolden)):
            pull(web.source, folder)
    recorded = (folder / NAME).read_bytes()
    if after and where in ("manifest.add_entry", "remote.install"):  # all of the new one
        assert (folder / ONE).read_bytes() == DATA[ONE] and recorded != before[1]
    else:
        assert (folder / ONE).read_bytes() == b"old" and recorded == before[1]
    pull(web.source, folder)
    assert contents(folder) == DATA


def test_where_files_cannot_be_linked_the_old_golden_is_copied(web, tmp_path, monkeypatch):
    def stop(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    before = old_golden(tmp_path / "here")
    monkeypatch.setattr("harness.golden.manifest.os.link", stop)
    with monkeypatch.context() as patch:
        patch.setattr("harness.golden.manifest.add_entry", stop)
        refused(pull, web.source, tmp_path / "here")
    assert (contents(tmp_path / "here"), (tmp_path / "here" / NAME).read_bytes()) == before
    pull(web.source, tmp_path / "here")
    assert contents(tmp_path / "here") == DATA


def test_a_first_golden_is_recorded_or_not_there(web, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("harness.golden.manifest.add_entry", stop)
        with pytest.raises(KeyboardInterrupt):
            pull(web.source, tmp_path)
    assert list(contents(tmp_path)) == [part_of(tmp_path, ONE).relative_to(tmp_path).as_posix()]
    pull(web.source, tmp_path)
    assert [asked for path, asked in web.asked if path.endswith(ONE)] == [None]


def test_an_interruption_while_bytes_come_keeps_them(web, tmp_path):
    before = old_golden(tmp_path / "here")

    def stop(done, total, what):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(web.source, tmp_path / "here", progress=stop)
    assert (tmp_path / "here" / ONE).read_bytes() == before[0][ONE]
    assert part_of(tmp_path / "here", ONE).stat().st_size > 0
    pull(web.source, tmp_path / "here")
    assert any(asked for path, asked in web.asked if path.endswith(ONE))
    assert contents(tmp_path / "here") == DATA


def test_a_whole_file_is_recorded_without_being_fetched(web, tmp_path):
    (tmp_path / "traces").mkdir()
    (tmp_path / ONE).write_bytes(DATA[ONE])
    assert pull(web.source, tmp_path).kept == [ONE]
    assert list(entries_of(tmp_path)) == [ONE, TWO]


def test_a_golden_recorded_here_keeps_its_entry(web, tmp_path):
    write(tmp_path / "here", {ONE: DATA[ONE]}, date="then")
    pull(web.source, tmp_path / "here")
    mine = entries_of(tmp_path / "here")[ONE]
    assert mine["date"] == "then" and "source" not in mine


def test_two_pulls_do_not_share_a_part(web, tmp_path):
    (tmp_path / "traces").mkdir()
    handle = os.open(tmp_path / "traces", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "another command" in refused(pull, web.source, tmp_path)
    os.close(handle)
    pull(web.source, tmp_path)


@pytest.mark.parametrize("address", ["", "  "])
def test_no_address_is_not_the_folder_one_is_in(web, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    old_golden(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    assert "address is empty" in refused(push, tmp_path / "here", address)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_one_line(web, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(pull, web.source, tmp_path / "file")


# Manifests that try something


@pytest.mark.parametrize(
    "file",
    [
        "../x.safetensors",
        "traces/../../x.safetensors",
        "traces/a/../b.safetensors",
        "traces/deep/x.safetensors",
        "/tmp/x.safetensors",
        "traces//x.safetensors",
        "traces\\x.safetensors",
        "traces/..\\x.safetensors",
        "C:\\x.safetensors",
        "traces/C:x.safetensors",
        "traces/x\0.safetensors",
        "traces/x\n.safetensors",
        "traces/x.safetensors\n",
        "traces/\u202ex.safetensors",
        "traces/\ud800.safetensors",
        "traces/.hidden.safetensors",
        "traces/.safetensors",
        "traces/x.py",
        "models/x/model.safetensors",
        "x.safetensors",
        "traces/" + "x" * 300 + ".safetensors",
        "traces/*.safetensors",
        "traces/%2e%2e%2fx.safetensors",
        "MANIFEST.json",
        "",
    ],
)
def test_names_that_lead_elsewhere_are_refused(web, tmp_path, file):
    web.files[f"/goldens/{NAME}"] = manifest_of(entry(TWO, DATA[TWO]), entry(file, b"x"))
    line = refused(pull, web.source, tmp_path / "here", model="two")
    assert "which is not traces/NAME.safetensors" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", [ONE, ONE.replace("one", "ONE")])
def test_a_name_stands_once(web, tmp_path, file):
    web.files[f"/goldens/{NAME}"] = manifest_of(entry(ONE, DATA[ONE]), entry(file, b"x"))
    assert "twice" in refused(pull, web.source, tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bytes": None}, "no size"),
        ({"bytes": 0}, "no size"),
        ({"bytes": -1}, "no size"),
        ({"bytes": True}, "no size"),
        ({"bytes": 3e5}, "no size"),
        ({"bytes": "300000"}, "no size"),
        ({"bytes": 2**36 + 1}, "no size"),
        ({"sha256": "0" * 63}, "no sha256"),
        ({"sha256": "g" * 64}, "no sha256"),
        ({"sha256": None}, "without one of"),
        ({"weights": 3}, "without one of"),
        ({"model": ["one"]}, "without one of"),
    ],
)
def test_entries_without_size_or_hash_are_refused(web, tmp_path, changes, words):
    web.files[f"/goldens/{NAME}"] = manifest_of(entry(ONE, DATA[ONE], **changes))
    assert words in refused(pull, web.source, tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "has no MANIFEST.json"),
        (b"", "is not a manifest"),
        (b"\xff\xfe", "is not a manifest"),
        (b"<html>", "is not a manifest"),
        (b"[]", "is not a manifest"),
        (b"[" * 100_000, "not a manifest"),
        (b'{"schema": "harness.manifest/1"}', "is not a manifest"),
        (b'{"schema": "harness.manifest/1", "goldens": 3}', "is not a manifest"),
        (b'{"schema": "harness.manifest/1", "goldens": [[]]}', "without one of"),
        (manifest_of(schema="harness.manifest/9"), "harness.manifest/9"),
        (manifest_of(), "no golden in"),
        (b" " * (2**24 + 1), "16,777,216 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value)[:60],
)
def test_far_manifests_that_are_none(web, tmp_path, data, words):
    if data is None:
        del web.files[f"/goldens/{NAME}"]
    else:
        web.files[f"/goldens/{NAME}"] = data
    assert words in refused(pull, web.source, tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["traces", ONE])
def test_links_out_of_the_folder_are_not_followed(web, tmp_path, link):
    outside, folder = tmp_path / "outside", tmp_path / "here"
    folder.mkdir()
    if link == "traces":
        outside.mkdir()
    else:
        outside.write_bytes(b"mine")
        (folder / "traces").mkdir()
    (folder / link).symlink_to(outside)
    assert "is a link out of" in refused(pull, web.source, folder)
    assert outside.read_bytes() == b"mine" if outside.is_file() else not list(outside.iterdir())


# The Hub


class Hub(Server):
    """As much of the Hub's interface as a push and a pull meet; small files, no LFS."""

    def __init__(self):
        super().__init__()
        self.commits: dict[str, dict[str, bytes]] = {}
        self.head: str | None = None
        self.created: list[dict] = []
        self.limits: dict[str, str] = {}  # how the API answers: an error code of the Hub's

    def commit(self, files):
        self.head = f"{len(self.commits) + 1:040x}"
        self.commits[self.head] = files
        for file, data in files.items():
            self.files[f"/datasets/owner/name/resolve/{self.head}/{file}"] = data
        return self.head

    def post(self, path, body):
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            if self.head is not None:
                return 409, (), json.dumps({"url": f"{self.url}/datasets/owner/name"}).encode()
            self.commit({".gitattributes": b""})
            return 200, (), json.dumps({"url": f"{self.url}/datasets/owner/name"}).encode()
        if path == "/api/datasets/owner/name/preupload/main":
            files = json.loads(body)["files"]
            modes = [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return 200, (), json.dumps({"files": modes}).encode()
        assert path == "/api/datasets/owner/name/commit/main"
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"]["parentCommit"] != self.head:
            return 412, (), b"{}"
        files = dict(self.commits[self.head])
        for line in lines[1:]:
            files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = self.commit(files)
        answer = {"commitUrl": f"{self.url}/datasets/owner/name/commit/{sha}", "commitOid": sha}
        return 200, (), json.dumps(answer).encode()

    def answer(self, path):
        match = re.fullmatch(r"/api/datasets/owner/(\w+)(?:/revision/(.+))?", path)
        if match is None:
            return path
        code = self.limits.get("code")
        if self.head is None or match[1] != "name":
            code = "RepoNotFound"
        sha = {None: self.head, "main": self.head}.get(match[2], match[2])
        if code is None and sha not in self.commits:
            code = "RevisionNotFound"
        if code:
            return 403 if code == "GatedRepo" else 404, [("X-Error-Code", code)], b"{}"
        siblings = [{"rfilename": file} for file in self.commits[sha]]
        info = {"id": "owner/name", "sha": sha, "siblings": siblings}
        return 200, (), json.dumps(info).encode()


@pytest.fixture
def hub(serve, monkeypatch):
    server = serve(Hub)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    return server


def test_push_to_the_hub_is_one_commit_in_a_private_repository(hub, tmp_path):
    here = write(tmp_path / "here")
    result = push(here, "hf://owner/name")
    assert result == Shared(f"hf://datasets/owner/name@{hub.head}", [ONE, TWO], [])
    assert hub.created == [
        {"name": "name", "organization": "owner", "type": "dataset", "visibility": "private"}
    ]
    assert len(hub.commits) == 2 and set(hub.commits[hub.head]) == {".gitattributes", NAME, *DATA}
    again = push(here, "hf://datasets/owner/name")
    assert again == Shared(result.place, [], [ONE, TWO]) and len(hub.commits) == 2


def test_pull_from_the_hub_records_the_commit(hub, tmp_path):
    push(write(tmp_path / "here"), "hf://owner/name")
    first = hub.head
    push(write(tmp_path / "newer", {ONE: b"newer"}), "hf://owner/name")
    assert pull("hf://owner/name", tmp_path / "a").place.endswith(hub.head)
    assert (tmp_path / "a" / ONE).read_bytes() == b"newer"
    for source, revision in (("hf://owner/name", first), (f"hf://owner/name@{first}", None)):
        folder = tmp_path / f"old {revision}"
        pull(source, folder, revision=revision)
        assert contents(folder) == DATA
        sources = {each["source"] for each in entries_of(folder).values()}
        assert sources == {f"hf://datasets/owner/name@{first}"}


def test_a_pull_from_the_hub_is_resumed(hub, tmp_path):
    push(write(tmp_path / "here"), "hf://owner/name")
    hub.cut = 200_000
    pull("hf://owner/name", tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere") == DATA
    assert "bytes=200000-" in {asked for _, asked in hub.asked}


def test_the_token_goes_to_the_hub_and_not_where_it_redirects(hub, serve, tmp_path):
    push(write(tmp_path / "here"), "hf://owner/name")
    storage = serve()
    for file, data in DATA.items():
        storage.files[f"/blob/{file}"] = data
        path = f"/datasets/owner/name/resolve/{hub.head}/{file}"
        hub.move[path] = f"{storage.url}/blob/{file}?signature=1"
    hub.tokens.clear()
    pull("hf://owner/name", tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere") == DATA
    assert set(hub.tokens) == {"Bearer hf_of_a_test"} and set(storage.tokens) == {None}


def test_two_pushes_at_once_do_not_undo_each_other(hub, tmp_path, monkeypatch):
    push(write(tmp_path / "here"), "hf://owner/name")
    post = hub.post

    def overtaken(path, body):
        if path.endswith("/commit/main"):
            hub.commit(dict(hub.commits[hub.head]))
        return post(path, body)

    hub.post = overtaken
    line = refused(push, write(tmp_path / "newer", {ONE: b"newer"}), "hf://owner/name")
    assert "push again" in line


@pytest.mark.parametrize(
    ("source", "revision", "code", "words"),
    [
        ("hf://owner/name", "v9", None, "no such revision: check --revision"),
        ("hf://owner/nothere", None, None, "does not exist or is private"),
        ("hf://owner/name", None, "GatedRepo", "is gated"),
        ("hf://owner/..", None, None, "check the address"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, tmp_path, source, revision, code, words):
    hub.commit({NAME: manifest_of(entry(ONE, DATA[ONE]))})
    if code:
        hub.limits["code"] = code
    assert words in refused(pull, source, tmp_path / "here", revision=revision)
    assert not (tmp_path / "here").exists()


def test_a_hub_that_hangs_is_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.golden.far_ends.TIMEOUT", 0.3)
    hub.answer = lambda path: (500, (), b"") if hub.released.wait(20) else path
    assert "timed out" in refused(pull, "hf://owner/name", tmp_path)
    hub.post = lambda path, body: (500, (), str(hub.released.wait(20)).encode())
    assert "timed out" in refused(push, write(tmp_path / "here"), "hf://owner/name")
