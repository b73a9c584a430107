"""What carpool does not serve itself goes to the upstream as it is, and its reply comes back so, in a stream.

An ASGI app that knows upstreams by their URL and their health, and nothing of batches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Protocol

import aiohttp
from starlette.types import Receive, Scope, Send
from yarl import URL

from carpool.errors import BackendError, BadInput, CarpoolError, Unavailable, Unreachable
from carpool.wire import native

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0  # as for batches

# What belongs to one connection and not to the request (RFC 9110, 7.6.1), and what each side says for itself.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade".split()
)
_NOT_FORWARDED = _HOP_BY_HOP | {b"host", b"expect"}
_NOT_BACK = _HOP_BY_HOP | {b"date"}
_CHOSEN_BY_AIOHTTP = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")

Headers = list[tuple[bytes, bytes]]


class Upstream(Protocol):
    """Where a request may be forwarded to."""

    authorization: str

    def url(self, path: str, query: str) -> str:
        """Where a path is, both as they came, with what is escaped still escaped."""
        ...

    def unreachable(self) -> str | None:
        """Why nothing can be forwarded to it."""
        ...


class PassThrough:
    """Forwards a request to whichever upstream is well, in turn. `timeout` (seconds) bounds a silence.

    The upstreams' own credentials are added where the caller sends none.
    """

    def __init__(self, upstreams: Sequence[Upstream], timeout: float) -> None:
        self._upstreams = upstreams
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=timeout)
        self._session: aiohttp.ClientSession | None = None
        self._turn = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, from ASGI."""
        if scope["type"] != "http":  # a websocket: what is forwarded is HTTP
            await send({"type": "websocket.close", "code": 1000})
            return
        answer = _Answer(send)
        try:
            await self._forward(scope, receive, answer)
        except CarpoolError as error:
            if answer.has_begun:
                # The rest is lost. Not to end the body is how the server learns to break the connection.
                logger.warning("a forwarded reply broke off", extra={"reason": str(error)})
            else:
                await answer.refuse(error)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _forward(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Forward, unless the caller hangs up first."""
        upstream = self._choose()
        headers = dict(scope["headers"])
        body = _Body(receive, headers.get(b"content-length"), is_chunked=b"transfer-encoding" in headers)
        forwarding = asyncio.create_task(self._exchange(upstream, scope, body, answer))
        gone = asyncio.create_task(body.gone())
        try:
            await asyncio.wait((forwarding, gone), return_when=asyncio.FIRST_COMPLETED)
            if forwarding.done():
                await forwarding
        finally:
            forwarding.cancel()
            gone.cancel()

    def _choose(self) -> Upstream:
        """The next upstream that is well."""
        troubles = []
        for _ in self._upstreams:
            self._turn += 1
            upstream = self._upstreams[self._turn % len(self._upstreams)]
            if (trouble := upstream.unreachable()) is None:
                return upstream
            troubles.append(trouble)
        raise Unavailable("no upstream can be reached", "; ".join(troubles), retry_after=1)

    async def _exchange(self, upstream: Upstream, scope: Scope, body: _Body, answer: _Answer) -> None:
        headers = _without(scope["headers"], _NOT_FORWARDED)
        if upstream.authorization and not any(name == b"authorization" for name, _ in headers):
            headers.append((b"authorization", upstream.authorization.encode("latin-1")))
        path = scope.get("raw_path") or scope["path"].encode()
        url = upstream.url(path.decode("latin-1"), scope["query_string"].decode("latin-1"))
        try:
            async with self._client().request(
                scope["method"],
                URL(url, encoded=True),
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers],
                data=body.stream() if body.has_bytes else None,
                allow_redirects=False,
            ) as response:
                await answer.begin(response.status, _without(response.raw_headers, _NOT_BACK))
                async for chunk in response.content.iter_any():
                    await answer.go_on(chunk)
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, BadInput):  # raised in the body's stream
                raise error.__cause__ from None
            raise _failure(error, f"{scope['method']} {url}") from error
        await answer.end()

    def _client(self) -> aiohttp.ClientSession:
        """The client, made where a loop runs."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=self._timeout,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=_CHOSEN_BY_AIOHTTP,
                trust_env=True,
            )
        return self._session


class _Answer:
    """A reply on its way to the caller."""

    def __init__(self, send: Send) -> None:
        self.has_begun = False
        self._send = send

    async def begin(self, status: int, headers: Headers) -> None:
        """Status and headers."""
        self.has_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def go_on(self, chunk: bytes) -> None:
        """A piece of its body."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """The last piece."""
        await self._send({"type": "http.response.body", "body": body})

    async def refuse(self, error: CarpoolError) -> None:
        """An error in the place of a reply."""
        reply = native.encode_error(error)
        headers = [(name.encode(), value.encode()) for name, value in reply.headers]
        headers.append((b"content-type", reply.content_type.encode()))
        headers.append((b"content-length", b"%d" % len(reply.body)))
        await self.begin(reply.status, headers)
        await self.end(reply.body)


class _Body:
    """A caller's body as it comes, and the news that the caller has gone: both come the same way."""

    def __init__(self, receive: Receive, length: bytes | None, is_chunked: bool) -> None:
        self.has_bytes = is_chunked or length is not None
        self._length = None if length is None else length.decode("latin-1")
        self._receive = receive
        self._has_hung_up = False
        self._is_read = asyncio.Event()
        if not self.has_bytes:
            self._is_read.set()

    async def stream(self) -> AsyncIterator[bytes]:
        """The body, in pieces."""
        more, size = True, 0
        try:
            while more:
                message = await self._receive()
                self._has_hung_up = message["type"] == "http.disconnect"
                if self._has_hung_up:
                    raise ConnectionResetError("the caller has hung up")
                piece = message.get("body", b"")
                size += len(piece)
                more = message.get("more_body", False)
                if not more:
                    check_whole(size, self._length)
                yield piece
        finally:
            self._is_read.set()

    async def gone(self) -> None:
        """Return once the caller has hung up."""
        await self._is_read.wait()
        while not self._has_hung_up:
            self._has_hung_up = (await self._receive())["type"] == "http.disconnect"


def check_whole(size: int, announced: str | None) -> None:
    """Raise `BadInput` for a body that is not as long as its `Content-Length`.

    uvicorn by itself drops what is behind a head with an `Upgrade` that it does not serve.
    """
    if announced is not None and announced.isdecimal() and size < int(announced):
        raise BadInput(
            f"the body has {size} bytes, its Content-Length is {announced}",
            "expected all of them, and no Upgrade in front of a server that drops the body for it",
        )


def _failure(error: Exception, what: str) -> CarpoolError:
    """What it means that there is no reply, or no more of it."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return Unavailable("the upstream cannot be reached", str(error), retry_after=1)
    if isinstance(error, TimeoutError):
        return BackendError("the upstream did not answer in time", what)
    return Unreachable("the connection to the upstream broke", f"{type(error).__name__}: {error}")


def _without(headers: Iterable[tuple[bytes, bytes]], names: frozenset[bytes]) -> Headers:
    """The headers without these, and without those that `Connection` names."""
    headers = [(name.lower(), value) for name, value in headers]
    named = b",".join(value for name, value in headers if name == b"connection")
    dropped = names | {name.strip().lower() for name in named.split(b",")}
    return [(name, value) for name, value in headers if name not in dropped]
