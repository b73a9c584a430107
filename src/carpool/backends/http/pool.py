"""Keep-alive connections to one upstream, each with one request at a time. It knows no dialect.

There is no limit here: how many batches are in flight is the scheduler's business.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping

from carpool.backends.http.connection import Connection
from carpool.backends.http.reply import Response
from carpool.backends.http.target import Target
from carpool.errors import Unreachable

CONNECT_SECONDS = 5.0  # a host that does not accept within this is down, whatever the batch may take


class CannotConnect(Unreachable):
    """There is nobody at the address, or nobody who accepts."""


def words_of_failure(error: Exception) -> str:
    """What the system says of a failure: "Connection refused", and not how a library has put it.

    asyncio says which call failed, for which address, and aiohttp adds its own settings; both keep the number.
    """
    cause: Exception = getattr(error, "os_error", error)  # which aiohttp has wrapped
    if not isinstance(cause, OSError) or isinstance(cause, ssl.SSLError) or cause.errno is None:
        return str(cause)
    if cause.errno > 0:
        return os.strerror(cause.errno)
    return cause.strerror or str(cause)  # a name that is not known, with a number of its own


class Pool:
    """The fast way to an upstream: `prepare` what all requests of a kind have in common, then `post` bodies."""

    def __init__(self, target: Target, largest_reply: int) -> None:
        self._target = target
        self._largest = largest_reply
        self._idle: list[Connection] = []
        self._resting = 0  # connections that will be idle in the loop's next turn, if all is well
        self._all: set[Connection] = set()
        self._tls = ssl.create_default_context() if target.secure else None
        self._closed = False

    def prepare(self, path: str, headers: Mapping[str, str]) -> bytes:
        """A request's head up to the length of its body, to `post` with."""
        lines = [f"POST {path} HTTP/1.1", f"host: {self._target.authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "content-length: "]).encode("latin-1")

    async def post(self, head: bytes, body: bytes) -> Response:
        """Send a request and give its reply. Raises `Unreachable`.

        A connection that was idle may have been closed at the other end meanwhile. A request that ends so
        before any byte of a reply is sent again, once, on a new connection: a model may be asked twice.
        """
        request = b"%b%d\r\n\r\n%b" % (head, len(body), body)
        connection = self._take()
        if connection is None and self._resting:
            await asyncio.sleep(0)
            connection = self._take()
        if connection is not None:
            try:
                return await connection.exchange(request)
            except Unreachable:
                if connection.heard or self._closed:
                    raise
        return await (await self._connect()).exchange(request)

    async def close(self) -> None:
        """End every connection, with what is in flight on it."""
        self._closed = True
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()
        self._all.clear()

    def _take(self) -> Connection | None:
        """The connection that was used last and is still open."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            self._all.discard(connection)
        return None

    def _release(self, connection: Connection) -> None:
        """A reply is whole. Bytes that follow it are seen in the loop's next turn; until then it rests."""
        self._resting += 1
        asyncio.get_running_loop().call_soon(self._rest, connection)

    def _rest(self, connection: Connection) -> None:
        self._resting -= 1
        if connection.is_usable and not self._closed:
            self._idle.append(connection)
        else:
            connection.abort()
            self._all.discard(connection)

    async def _connect(self) -> Connection:
        loop, target = asyncio.get_running_loop(), self._target
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._largest, self._release), target.host, target.port, ssl=self._tls
                )
        except OSError as error:  # also what a timeout, a name that is not known and a failed handshake are
            reason = words_of_failure(error) or f"it did not accept within {CONNECT_SECONDS:g} s"
            raise CannotConnect(f"the upstream cannot be reached at {target}", reason) from error
        self._all.add(connection)
        return connection
