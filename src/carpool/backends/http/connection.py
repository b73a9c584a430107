"""One connection to an upstream, with at most one request in flight on it. It knows no pool and no dialect.

A reply pairs with its request because nothing else may be on the connection: bytes that come unasked for, or
after a reply, or before the request has left, end the connection, and so does whoever stops waiting. What
nobody can see is a second copy of a reply that comes just after the next request has left: HTTP/1.1 numbers
nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import cast

from carpool.backends.http.reply import NO_HEADERS, ReplyParser, Response, read_plain, too_large
from carpool.errors import BackendError, CarpoolError, Unreachable
from carpool.wire.counting import CountedBody

# A reply with one vector of 1024 numbers is no more, and so takes one read. What it holds of a body is copied.
_HEAD_BYTES = 16_384
_CHUNK_BYTES = 65_536  # read at a time in the ordinary way
_KEPT_BYTES = 2 * 1024**2  # of a body's memory between two replies: 32 vectors of 4096 numbers are 1.4 MB
_OWN_REFERENCES = 3  # to an object in an attribute and a variable, as `sys.getrefcount` counts them


class Connection(asyncio.BufferedProtocol):
    """Sends a request, reads its reply straight into a buffer of the announced length.

    `heard` tells whether any byte of the reply has come, so that whoever gets `Unreachable` knows if the
    upstream may have simply closed an idle connection.
    """

    def __init__(self, largest_reply: int, release: Callable[[Connection], None]) -> None:
        self.heard = False
        self._largest = largest_reply
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._reply: asyncio.Future[Response] | None = None  # while a reply is expected
        self._reusable = True
        self._is_early = False  # whether the reply has begun before the request had left
        self._parser: ReplyParser | None = None  # while a reply is read in the ordinary way
        self._body: CountedBody | None = None  # while a plain reply's body is read
        self._headers = NO_HEADERS  # of that reply
        self._last_body = CountedBody()  # which the next reply may be read into
        self._head_buffer = memoryview(bytearray(_HEAD_BYTES))
        self._buffer = self._head_buffer  # where the next bytes go, from `_filled` on
        self._filled = 0

    @property
    def is_usable(self) -> bool:
        """Whether a request may be sent: it is open and nobody waits for a reply on it."""
        return self._reusable and self._reply is None and not self._transport.is_closing()

    async def exchange(self, request: bytes) -> Response:
        """Send a request and wait for its reply. Cancelling it ends the connection."""
        reply: asyncio.Future[Response] = self._loop.create_future()
        self._reply = reply
        self.heard = False
        self._transport.write(request)
        try:
            return await reply
        except BaseException:
            self.abort()
            raise
        finally:
            self._reply = None
            self._release(self)

    def abort(self) -> None:
        """End the connection now."""
        self._reusable = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open, from the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go, from the event loop."""
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come, from the event loop."""
        self._filled += nbytes
        if self._body is not None:
            if self._filled == len(self._body):
                self._finish(Response(200, self._headers, self._body))
        elif self._reply is None or self._reply.done():
            self.abort()  # nobody asked
        else:
            self._read()

    def eof_received(self) -> None:
        """The upstream says no more, from the event loop, which then closes the connection."""
        self._reusable = False

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone, from the event loop."""
        self._reusable = False
        if self._reply is None or self._reply.done():
            return
        try:
            if self._parser is None:
                raise Unreachable("the connection to the upstream broke", str(error or "it was closed"))
            self._finish(self._parser.feed_end())
        except CarpoolError as failure:
            self._fail(failure)

    def _read(self) -> None:
        """Make of the bytes in the buffer what they are."""
        if not self.heard:
            self.heard = True
            self._is_early = self._transport.get_write_buffer_size() > 0
        data = bytes(self._buffer[: self._filled])
        try:
            if self._parser is None:
                self._read_head(data)
            else:
                self._parse(self._parser, data)
        except CarpoolError as error:
            self._fail(error)

    def _read_head(self, data: bytes) -> None:
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 and b"HTTP/1.1 200 ".startswith(data[:13]) and len(data) < _HEAD_BYTES:
            return  # there is more to come
        plain = read_plain(data[:end]) if end >= 4 and not self._is_early else None
        if plain is not None:
            length, self._headers = plain
            self._read_body(length, data[end:])
            return
        self._buffer = memoryview(bytearray(_CHUNK_BYTES))
        self._parser = ReplyParser(self._largest)
        self._parse(self._parser, data)

    def _read_body(self, length: int, start: bytes) -> None:
        """Read so many bytes, of which `start` is here already."""
        if length > self._largest:
            raise too_large(self._largest)
        if len(start) > length:
            self._reusable = False  # something follows: the reply is whole, the connection is not to be trusted
        body = self._room(length)
        body[: len(start)] = start[:length]
        if len(start) >= length:
            self._finish(Response(200, self._headers, body))
        else:
            self._body, self._buffer, self._filled = body, memoryview(body), len(start)

    def _room(self, length: int) -> CountedBody:
        """A body to read into: where nobody has the last one any more, nor a slice of it, that one.

        Replies of full batches are about as long, and to get and clear new memory for each costs more than to
        read it.
        """
        if length > _KEPT_BYTES:
            return CountedBody(length)
        body = self._last_body
        if sys.getrefcount(body) > _OWN_REFERENCES:
            body = self._last_body = CountedBody(length)
            return body
        if length > len(body):
            body.extend(bytes(length - len(body)))
        else:
            del body[length:]
        body.forget()
        return body

    def _parse(self, parser: ReplyParser, data: bytes) -> None:
        self._filled = 0
        parser.feed(data)
        if parser.response is not None:
            self._reusable = self._reusable and parser.keeps_alive
            self._finish(parser.response)

    def _finish(self, response: Response) -> None:
        self._body, self._parser = None, None
        self._buffer, self._filled = self._head_buffer, 0
        self._reusable = self._reusable and not self._is_early
        if self._is_early and response.status == 200:  # it may be a refusal, but no answer to what was not read
            self._fail(BackendError("the upstream answered before it had the request"))
        elif self._reply is not None and not self._reply.done():
            self._reply.set_result(response)

    def _fail(self, error: CarpoolError) -> None:
        self._reusable = False
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
