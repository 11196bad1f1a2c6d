"""Clients of the benchmarks that ask a server by hand, and may behave badly."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
from typing import Any
from urllib.parse import urlsplit

from server_process import Server


def ask(server: Server, body: Any, path: str) -> tuple[int, str]:
    """The status of an answer, and the line where it is an error."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        told = connection.getresponse()
        error = json.load(told).get("error", "")
    finally:
        connection.close()
    return told.status, error if isinstance(error, str) else error["message"]


def connected(server: Server) -> socket.socket:
    where = urlsplit(server.url)
    return socket.create_connection((where.hostname, where.port), timeout=30)


def post(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data


def head(connection: socket.socket) -> bytes:
    """What comes until a stream has begun, or an answer has ended."""
    data = b""
    while not any(end in data for end in (b"data: ", b'"error"', b"Invalid HTTP")):
        if not (part := connection.recv(65536)):
            break
        data += part
    return data


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side closes, however it does."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            data += part
    return data


def abort(connection: socket.socket) -> None:
    """Close with a reset, as a machine does that is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
