"""HTTP as bytes: what a client library would not send, and replies before anything has understood them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.support.servers import RunningServer

SECONDS = 30.0


class Response(NamedTuple):
    """One response: `head` is its lines, sorted, without those that no two responses share."""

    status: int
    head: tuple[str, ...]
    body: bytes


class Connection:
    """A connection that sends bytes as they are given and reads responses one by one."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._read = b""

    def send(self, *segments: bytes) -> None:
        """Send each on its own."""
        for segment in segments:
            self.socket.sendall(segment)

    def response(self, method: str = "POST") -> Response | None:
        """The next response, interim ones included; `None` where the server has hung up."""
        while (end := self._read.find(b"\r\n\r\n")) < 0:
            if not self._fill():
                assert not self._read, self._read
                return None
        lines = self._read[:end].decode().split("\r\n")
        self._read = self._read[end + 4 :]
        status = int(lines[0].split()[1])
        lengths = [int(line.split(": ")[1]) for line in lines if line.startswith("content-length: ")]
        assert len(lengths) <= 1, lines
        length = lengths[0] if lengths and method != "HEAD" else 0
        while len(self._read) < length:
            assert self._fill(), self._read
        body, self._read = self._read[:length], self._read[length:]
        head = tuple(sorted(line for line in lines if not line.startswith("date: ")))
        return Response(status, head, _without_what_is_new_each_time(body))

    def is_open(self) -> bool:
        """Whether the server answers one more request on it."""
        try:
            self.send(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
            reply = self.response()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return reply is not None and b"healthy" in reply.body

    def _fill(self) -> bool:
        try:
            chunk = self.socket.recv(65536)
        except ConnectionResetError:
            return False
        self._read += chunk
        return bool(chunk)


@contextmanager
def connect(server: RunningServer) -> Iterator[Connection]:
    """A new connection to a server."""
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=SECONDS) as connected:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Connection(connected)


def post(body: bytes, *lines: str, path: str = "/embed", version: str = "1.1") -> bytes:
    """A request with a content length."""
    head = [f"POST {path} HTTP/{version}", "host: a", *lines, f"content-length: {len(body)}"]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def post_chunked(*chunks: bytes, lines: tuple[str, ...] = (), path: str = "/embed") -> bytes:
    """A request whose body comes in chunks."""
    head = "\r\n".join((f"POST {path} HTTP/1.1", "host: a", *lines, "transfer-encoding: chunked"))
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head.encode() + b"\r\n\r\n" + body + b"0\r\n\r\n"


def text(words: str) -> bytes:
    """The body of a `POST /embed`."""
    return b'{"input":"' + words.encode() + b'"}'


def _without_what_is_new_each_time(body: bytes) -> bytes:
    body = re.sub(rb'"timestamp":\d+', b'"timestamp":0', body)
    body = re.sub(rb'"request_id":"[-0-9a-f]{36}"', b'"request_id":""', body)
    return re.sub(rb'"processing_time":[0-9.]+', b'"processing_time":0', body)
