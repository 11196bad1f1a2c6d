"""Where goldens are shared: a Hub repository, a web server, any file system of fsspec's, a folder.

Knows how files are read and written there, and what the errors of all these libraries mean, not
what the files are: `remote.py` holds what comes against sizes and hashes.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from engine.errors import EngineError

from ..errors import BadGolden

TIMEOUT = 60.0  # seconds that a web server may be silent
CHUNK = 1 << 20  # bytes read at once from a file system

Progress = Callable[[int, int | None, str], None]  # done, total, what
Pieces = Generator[
    tuple[int, bytes], None, None
]  # where each piece of a file begins, and its bytes

_HUB = re.compile(r"hf://(?:(dataset|model)s/)?([\w.-]+/[\w.-]+)(?:@([^@]+))?", re.ASCII)


class Source(Protocol):
    """What can be pulled from. Any error may come out of it: call it inside `explained`."""

    @property
    def place(self) -> str:
        """How it is printed and recorded: pinned where it can be, and without secrets."""
        ...

    def pieces(self, file: str, offset: int) -> Pieces:
        """A file from `offset` on, or from zero where the far end cannot do that."""
        ...


class Target(Source, Protocol):
    """What can be pushed to."""

    def has(self, file: str, size: int) -> bool: ...

    def send(self, files: Mapping[str, Path | bytes], progress: Progress | None) -> str:
        """Write files in this order, none of them half; return the place they are at."""
        ...


def find_source(address: str, revision: str | None) -> Source:
    """The far end that an address names; BadGolden where it names none.

    `revision` is a commit, tag or branch of a Hub repository and is resolved to the commit.
    """
    if address.startswith(("http://", "https://")):
        _no_revision(address, revision)
        return _Web(shown(address), lambda file: _below(address, file), {})
    return find_target(address, revision, create=False)


def find_target(address: str, revision: str | None, *, create: bool = True) -> Target:
    """The same for what can be written; `create` makes a missing Hub repository, a private one."""
    if address.startswith("hf://"):
        match = _HUB.fullmatch(address.rstrip("/"))
        if match is None:
            raise BadGolden(f"{address!r} is no Hub repository: write hf://datasets/OWNER/NAME")
        kind, name, pinned = match[1] or "dataset", match[2], match[3]
        if pinned and revision not in (None, pinned):
            raise BadGolden(f"{address} and --revision {revision} differ: leave one of them out")
        with explained(f"hf://{kind}s/{name}"):
            return _hub(kind, name, pinned or revision, create)
    _no_revision(address, revision)
    if not address.strip():
        raise BadGolden("the address is empty: give hf://datasets/OWNER/NAME, or a folder")
    if address.startswith(("http://", "https://")):
        raise BadGolden(f"{shown(address)} can only be pulled from: push to hf:// or to a folder")
    import fsspec

    if "://" not in address:
        path = str(Path(address).expanduser().resolve())
        return _Files(path, fsspec.filesystem("file"), path)
    with explained(shown(address)):
        system, root = fsspec.core.url_to_fs(address)
        return _Files(shown(address), system, root.rstrip("/"))


@contextlib.contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn whatever a library raises inside into one line: what happened where, and the way out."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # no common base, one meaning
        raise BadGolden(f"{place} {_reason(error)}") from error


@dataclass(frozen=True)
class _Web:
    """Files at http(s) addresses, read with the client that huggingface_hub brings."""

    place: str
    address: Callable[[str], str]
    headers: Mapping[str, str]

    def pieces(self, file: str, offset: int) -> Pieces:
        headers = {**self.headers, "Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        address = self.address(file)
        with _client().stream("GET", address, headers=headers, timeout=TIMEOUT) as response:
            status = response.status_code
            begin = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
            if not offset or status == 200 or (status == 206 and begin):
                if status not in (200, 206):
                    kinds = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
                    raise kinds.get(status, ConnectionError)(f"HTTP status {status}")
                position = offset if status == 206 else 0
                for chunk in response.iter_raw():
                    yield position, chunk
                    position += len(chunk)
                return
        yield from self.pieces(file, 0)  # its answer to a range is of no use


@functools.cache
def _client() -> Any:
    """A client like the Hub's shared one, which refuses any address where HF_HUB_OFFLINE is set."""
    from huggingface_hub.utils import get_session

    client = type(get_session())(follow_redirects=True)
    atexit.register(client.close)
    return client


@dataclass(frozen=True)
class _Hub:
    """A Hub repository at one commit; what is sent becomes the next one, or nothing does."""

    kind: str  # dataset or model
    name: str
    revision: str | None  # the branch, for a push
    commit: str
    files: frozenset[str]
    api: Any
    web: _Web

    @property
    def place(self) -> str:
        return self.web.place

    def pieces(self, file: str, offset: int) -> Pieces:
        return self.web.pieces(file, offset)

    def has(self, file: str, size: int) -> bool:
        return file in self.files

    def send(self, files: Mapping[str, Path | bytes], progress: Progress | None) -> str:
        from huggingface_hub import CommitOperationAdd

        if progress:
            progress(0, None, f"{len(files)} files to {self.name}")
        with _bounded():
            commit = self.api.create_commit(
                self.name,
                [CommitOperationAdd(file, data) for file, data in files.items()],
                commit_message="Goldens, by harness golden push",
                repo_type=self.kind,
                revision=self.revision,
                parent_commit=self.commit,  # refused where another push came between
            )
        return f"hf://{self.kind}s/{self.name}@{commit.oid}"


def _hub(kind: str, name: str, revision: str | None, create: bool) -> _Hub:
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    api = HfApi()
    with _bounded():
        if create:
            api.create_repo(name, repo_type=kind, private=True, exist_ok=True)
        info: Any = api.repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)

    def address(file: str) -> str:
        return hf_hub_url(name, file, repo_type=kind, revision=info.sha, endpoint=api.endpoint)

    web = _Web(f"hf://{kind}s/{name}@{info.sha}", address, build_hf_headers())
    files = frozenset(each.rfilename for each in info.siblings or ())
    return _Hub(kind, name, revision, info.sha, files, api, web)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Requests of HfApi wait for ever by default; in here, TIMEOUT."""
    from huggingface_hub.utils import get_session

    session = get_session()
    before, session.timeout = session.timeout, TIMEOUT
    try:
        yield
    finally:
        session.timeout = before


@dataclass(frozen=True)
class _Files:
    """A folder of any file system that fsspec knows."""

    place: str
    system: Any  # fsspec.AbstractFileSystem
    root: str

    def pieces(self, file: str, offset: int) -> Pieces:
        with self.system.open(f"{self.root}/{file}", "rb") as stream:
            try:
                position = stream.seek(offset) if offset else 0
            except (OSError, ValueError, NotImplementedError):
                position = 0  # it cannot seek, and nothing has been read yet
            while chunk := stream.read(CHUNK):
                yield position, chunk
                position += len(chunk)

    def has(self, file: str, size: int) -> bool:
        try:
            return self.system.info(f"{self.root}/{file}")["size"] == size
        except FileNotFoundError:
            return False

    def send(self, files: Mapping[str, Path | bytes], progress: Progress | None) -> str:
        self.system.makedirs(f"{self.root}/traces", exist_ok=True)
        for i, (file, data) in enumerate(files.items()):
            if progress:
                progress(i, len(files), file)
            self._write(f"{self.root}/{file}", data)
        return self.place

    def _write(self, path: str, data: Path | bytes) -> None:
        parent, _, name = path.rpartition("/")
        temporary = f"{parent}/.{name}.{os.getpid()}"
        try:
            with self.system.open(temporary, "wb") as far:
                if isinstance(data, bytes):
                    far.write(data)
                else:
                    with data.open("rb") as near:
                        shutil.copyfileobj(near, far, CHUNK)
            self.system.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self.system.rm_file(temporary)
            raise


def shown(address: str) -> str:
    """An address without what may be secret in it: user, password, query."""
    bare = re.split(r"[?#]", address, maxsplit=1)[0].rstrip("/")
    return re.sub(r"(?<=://)[^/@]*@", "", bare)


def _below(address: str, file: str) -> str:
    parts = urlsplit(address)  # a query may sign the whole folder
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(file)}", fragment="").geturl()


def _no_revision(address: str, revision: str | None) -> None:
    if revision is not None:
        raise BadGolden(
            f"revision {revision!r} goes with hf://, and {shown(address)} is no Hub repository: "
            "leave --revision out"
        )


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    line = "".join(filter(str.isprintable, " ".join(str(error).split())))[:200]
    line = line or type(error).__name__
    denied = "is not open to you: ask for access; a Hub repository needs HF_TOKEN"
    reasons = (
        (errors.OfflineModeIsEnabled, "is out of reach while HF_HUB_OFFLINE is set: unset it"),
        (errors.GatedRepoError, "is gated: accept its terms on its page and set HF_TOKEN"),
        (
            errors.RepositoryNotFoundError,
            "does not exist or is private: check the spelling, or set HF_TOKEN",
        ),
        (errors.RevisionNotFoundError, "has no such revision: check --revision"),
        (FileNotFoundError, "does not exist: check the address"),
        (PermissionError, denied),
        (ImportError, f"needs a package that is not installed: {line}"),
    )
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    status = getattr(getattr(error, "response", None), "status_code", None)
    by_status: dict[Any, str] = {
        401: denied,
        403: denied,
        412: "was changed by someone else: push again",
    }
    return by_status.get(
        status,
        f"failed ({line}): check the address and the network, then run the same command again",
    )
