"""What the connections of a server share: its routes, the heads they know, and how a response is written.

It is apart from the connections because it can be compiled, which a subclass of uvicorn's cannot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import cache, lru_cache
from http import HTTPStatus
from typing import NamedTuple

from carpool.errors import TooLarge
from carpool.server.service import Service
from carpool.wire.base import Reply, Route
from carpool.wire.terms import Terms

# Heads that are known by their bytes. Those of one client differ in the content length alone, so this holds a
# few clients' worth; one whose every head is new (a trace id) only ever pays for the parser.
_MOST_HEADS = 2048
_LONGEST_HEAD = 2048  # bytes; with the above this bounds what is kept, in two tables, to 8 MiB

# Of replies that begin alike, while uvicorn's own headers stay the same: for a second. Only a dialect whose
# headers tell times has more.
_MOST_FRAMES = 256

_LENGTHS = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")  # as nearly all clients write it
_MOST_DIGITS = 15  # more than any body has bytes

Headers = list[tuple[bytes, bytes]]
Frame = tuple[bytes, bytes]  # a response's head, up to its content length and from there on


class Head(NamedTuple):
    """What the bytes of a request's head mean."""

    route: Route
    terms: Terms
    length: int


class Lane:
    """What the connections of a server share: its routes, the heads they know, and the heads they write."""

    def __init__(self, service: Service, routes: Iterable[Route]) -> None:
        self.service = service
        self._responses = service.metrics.responses
        self.routes = {route.path.encode(): route for route in routes}
        self.heads: dict[bytes, Head] = {}
        self._kinds: dict[bytes, Head] = {}  # the same heads, by their bytes without the content length
        self._defaults: Headers = []
        self._frames: dict[tuple[int, bool, str, tuple[tuple[str, str], ...]], Frame] = {}

    def learn(self, block: bytes, head: Head) -> None:
        """Know a head by its bytes from now on, and one like it of another length."""
        self._remember(block, head)
        kind, length = _without_length(block)
        if length == head.length and len(block) <= _LONGEST_HEAD:
            self._kinds[kind] = head

    def recognise(self, block: bytes) -> Head | None:
        """What the bytes of a head mean, if they are known but perhaps for how long the body is."""
        known = self.heads.get(block)
        if known is not None or not self._kinds:
            return known
        kind, length = _without_length(block)
        head = self._kinds.get(kind)
        if head is None or length is None:
            return None
        try:
            self.service.check_length(head.route, length)
        except TooLarge:
            return None  # the parser's way refuses it
        head = head._replace(length=length)
        self._remember(block, head)
        return head

    def send(
        self, transport: asyncio.Transport, reply: Reply, path: str, keep_alive: bool, defaults: Headers
    ) -> None:
        """Write a response and count it. `defaults` are uvicorn's own headers, a new list each second."""
        self._responses[path, reply.status] += 1
        if transport.is_closing():
            return
        if defaults is not self._defaults or len(self._frames) > _MOST_FRAMES:
            self._defaults = defaults
            self._frames.clear()
        kind = reply.status, keep_alive, reply.content_type, reply.headers
        frame = self._frames.get(kind)
        if frame is None:
            frame = self._frames[kind] = write_frame(reply, keep_alive, defaults)
        before, after = frame
        pieces = reply.pieces
        length = 0
        for piece in pieces:  # there are a few of them, for which a `sum` takes longer
            length += len(piece)
        transport.write(b"".join((before, _decimal(length), after, *pieces)))
        if not keep_alive:
            transport.close()

    def _remember(self, block: bytes, head: Head) -> None:
        if len(block) <= _LONGEST_HEAD:
            if len(self.heads) >= _MOST_HEADS:
                self.heads.clear()
                self._kinds.clear()
            self.heads[block] = head


def _without_length(block: bytes) -> tuple[bytes, int | None]:
    """The bytes of a head but for the digits of its content length, and the length, where it has one.

    It is looked for where a header begins, and a head that the parser has understood has but one: where the
    bytes around the digits are those of such a head, no parser would read another length.
    """
    for name in _LENGTHS:
        place = block.find(name)
        if place >= 0:
            start = place + len(name)
            end = block.find(b"\r", start)
            digits = block[start:end]
            if digits.isdigit() and len(digits) <= _MOST_DIGITS:
                return block[:start] + block[end:], int(digits)
    return block, None


def write_frame(reply: Reply, keep_alive: bool, defaults: Headers) -> Frame:
    """The head of a response, in the order of the ASGI lane."""
    lines = [name + b": " + value + b"\r\n" for name, value in defaults]
    lines.append("".join([f"{name}: {value}\r\n" for name, value in reply.headers]).encode("latin-1"))
    close = "" if keep_alive else "connection: close\r\n"
    after = f"\r\ncontent-type: {reply.content_type}\r\n{close}\r\n"
    return b"".join((_status_line(reply.status), *lines, b"content-length: ")), after.encode()


_decimal = lru_cache(4096)(b"%d".__mod__)  # the replies to one kind of question are about as long


@cache
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
