"""What a server is told when it starts, and the limits it keeps, in one table."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineError
from ..tokenizer.sandbox import Limits

PORT = 11435  # shimmy's
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

TEMPLATE = Limits(characters=1 << 23, seconds=2.0)  # for strangers' conversations


@dataclass(frozen=True)
class Settings:
    """`keys` are those of which a request has to show one, where there are any; `origins` the pages
    of other sites that a browser may let in."""

    host: str = "127.0.0.1"
    port: int = PORT
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_tokens: int = 4096  # of one answer; also what a chat gets that asks for no number
    choices: int = 16  # answers to one request
    stops: int = 16  # stop strings of one request
    top_logprobs: int = 20  # OpenAI's own limit
    body_bytes: int = 8 << 20  # a context of a million tokens, twice
    template: Limits = TEMPLATE
    send_seconds: float = 120.0  # a reader may block one write for so long
    ping_seconds: float = 15.0  # between comments that keep a silent stream alive

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address to bind is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_keys(file: Path) -> tuple[str, ...]:
    """API keys, one a line; empty lines and those that begin with # are none.

    Raises EngineError where there is no key, or one that no header can carry.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise EngineError(f"{file} is no text: write one API key a line") from None
    lines = (line.strip() for line in text.splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise EngineError(f"{file} has no API key: write one a line, or leave --api-key-file out")
    for number, key in enumerate(keys, 1):
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise EngineError(
                f"key {number} of {file} has characters that no header can carry: "
                "use printable ASCII without spaces"
            )
    return keys
