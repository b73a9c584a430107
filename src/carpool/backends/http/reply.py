"""One HTTP/1.1 reply, from bytes to status, headers and body. It knows no connection.

Nearly every reply is plain: `read_plain` sees that from its head, and the connection reads the body itself.
`ReplyParser` is for all others: chunked, compressed, errors, interim replies, or ended by the connection's end.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import httptools

from carpool.errors import BackendError, Unreachable
from carpool.wire.counting import CountedBody

_LONGEST_HEAD = 65_536  # bytes of headers, as nginx and others bound them
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # zlib looks for itself which of the two it is

TOKENS = "x-compute-tokens"  # of the whole batch, as Text Embeddings Inference tells it

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Response(NamedTuple):
    """A whole reply. Header names are in lower case; of a plain reply only the one that is of interest."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray


def read_plain(head: bytes) -> tuple[int, Mapping[str, str]] | None:
    """The length of the body and the headers, if it is a 200 about whose framing there is nothing to decide.

    Whatever could be read in two ways makes it not plain: a second length, a folded line, a bare line end.
    """
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if (
        not lower.startswith(b"http/1.1 200 ")
        or at < 0
        or lower.count(b"content-length") != 1
        or b"transfer-encoding" in lower
        or b"content-encoding" in lower
        or b"\r\n " in lower
        or b"\r\n\t" in lower
        or (b"\r\nconnection:" in lower and b"\r\nconnection: keep-alive\r\n" not in lower)
        or lower.count(b"\n") != lower.count(b"\r\n")
    ):
        return None
    digits = lower[at + 17 : lower.find(b"\r\n", at + 17)].strip(b" \t")
    return (int(digits), _told_tokens(lower)) if digits.isdigit() else None


def _told_tokens(lower: bytes) -> Mapping[str, str]:
    """What a plain reply's head, in lower case, says of the tokens that it took, if it does."""
    at = lower.find(b"\r\n" + TOKENS.encode() + b":")
    if at < 0:
        return NO_HEADERS
    return {TOKENS: lower[lower.find(b":", at) + 1 : lower.find(b"\r\n", at + 2)].decode("latin-1").strip()}


class ReplyParser:
    """Takes a reply's bytes as they come; `response` is there once it is whole.

    `keeps_alive` says whether the connection may be used again. Raises `BackendError` for what is not HTTP or
    is too large.
    """

    def __init__(self, largest: int) -> None:
        self.response: Response | None = None
        self.keeps_alive = False
        self._largest = largest
        self._parser = httptools.HttpResponseParser(self)
        self._fed = 0
        self._start()

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes. What follows a whole reply ends the connection and touches nothing else."""
        self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if isinstance(cause, BackendError):  # raised in a callback below
                raise cause from None
            self.keeps_alive = False
            if self.response is None:
                raise BackendError("the upstream's reply is not HTTP", str(error)) from None
        if not self._has_head and self._fed > _LONGEST_HEAD:
            raise BackendError("the upstream's reply has no end of headers", f"allowed: {_LONGEST_HEAD} bytes")

    def feed_end(self) -> Response:
        """The connection has ended: the reply, if that is how its end is told. Raises `Unreachable`."""
        if self._has_head and not {"content-length", "transfer-encoding"} & self._headers.keys():
            self._finish()
        if self.response is None:
            raise Unreachable("the upstream closed the connection in the middle of its reply")
        return self.response

    def _start(self) -> None:
        self._headers: dict[str, str] = {}
        self._body = CountedBody()
        self._has_head = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, from httptools."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole, from httptools."""
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        """A piece of the body, from httptools."""
        if len(self._body) + len(body) > self._largest:
            raise too_large(self._largest)
        self._body += body

    def on_message_complete(self) -> None:
        """The reply is whole, from httptools; an interim one (100, 103) says nothing."""
        if self.response is not None:
            self.keeps_alive = False  # a second reply to one request
        elif self._parser.get_status_code() < 200:
            self._start()
        else:
            self._finish()
            self.keeps_alive = self._parser.should_keep_alive()

    def _finish(self) -> None:
        body = _decoded(self._body, self._headers.get("content-encoding", "identity"), self._largest)
        self.response = Response(self._parser.get_status_code(), self._headers, body)


def too_large(largest: int) -> BackendError:
    """The error of a reply that will not be read to its end."""
    return BackendError("the upstream's reply is too large", f"allowed: {largest} bytes")


def _decoded(body: bytearray, encoding: str, largest: int) -> bytes | bytearray:
    """The body without its compression, which was not asked for."""
    match encoding.strip().lower():
        case "identity" | "":
            return body
        case "gzip" | "x-gzip" | "deflate":
            return _inflated(body, largest)
        case other:
            raise BackendError(f"the upstream's reply is in {other}", "allowed: gzip, deflate, or as it is")


def _inflated(body: bytearray, largest: int) -> bytes:
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        inflated = inflater.decompress(body, largest)
    except zlib.error as error:
        raise BackendError("the upstream's reply cannot be decompressed", str(error)) from None
    if inflater.unconsumed_tail:
        raise too_large(largest)
    if not inflater.eof:
        raise BackendError("the upstream's reply cannot be decompressed", "it ends too early")
    return inflated
