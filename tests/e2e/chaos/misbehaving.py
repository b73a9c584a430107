"""An inference server that misbehaves when it is told to, as a program of its own, so that it can be killed.

It speaks TEI's `POST /embed`, with vectors that only their texts have, and answers `/health` and `/info`. Each
line on its standard input names the ways to treat batches from now on, one of which is drawn for every batch;
it answers with a line that says how many it has treated in the ways before. It knows nothing of who sends them.

    python -m tests.e2e.chaos.misbehaving PORT
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Sequence

from tests.support.upstream import vector

BATCH_SECONDS = 0.003  # so that batches form, and there is a middle to be killed in
LATE_SECONDS = 1.5  # later than the proxy under test waits for a batch
DRIP_SECONDS = 0.01  # a byte
FLAP_SECONDS = 0.1
INFO = {"model_id": "chaos", "max_client_batch_size": 32, "max_concurrent_requests": 512, "version": "1.9.0"}
NOT_VECTORS = (
    b"",
    b"null",
    b"[",
    b"[]",
    b"{}",
    b'"ok"',
    b"[[0.1,]]",
    b"<html>Bad Gateway</html>",
    b"\xff\xfe" * 40,
)


def reply(body: bytes, status: str = "200 OK") -> bytes:
    """An HTTP reply."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def vectors(texts: Sequence[str]) -> bytes:
    """The honest answer."""
    return reply(json.dumps([vector(text) for text in texts]).encode())


async def well(texts: Sequence[str], to: StreamWriter) -> None:
    """As it should be."""
    to.write(vectors(texts))


async def hang(texts: Sequence[str], to: StreamWriter) -> None:
    """No reply, ever; the connection stays."""
    await asyncio.Event().wait()


async def drip(texts: Sequence[str], to: StreamWriter) -> None:
    """A reply so slow that it will not end in time, and never a pause."""
    for byte in vectors(texts):
        to.write(bytes([byte]))
        await asyncio.sleep(DRIP_SECONDS)


async def reset(texts: Sequence[str], to: StreamWriter) -> None:
    """The connection is reset instead of a reply."""
    connection: socket.socket = to.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    to.close()


async def close(texts: Sequence[str], to: StreamWriter) -> None:
    """The connection is closed politely instead of a reply."""
    to.close()


async def garbage(texts: Sequence[str], to: StreamWriter) -> None:
    """A good status, and a body that is no array of vectors."""
    to.write(reply(random.choice(NOT_VECTORS)))


async def noise(texts: Sequence[str], to: StreamWriter) -> None:
    """Not even HTTP."""
    to.write(random.randbytes(200))
    to.close()


async def truncate(texts: Sequence[str], to: StreamWriter) -> None:
    """A reply that ends before it is over, at any byte of it."""
    whole = vectors(texts)
    to.write(whole[: random.randrange(1, len(whole))])
    to.close()


async def miscount(texts: Sequence[str], to: StreamWriter) -> None:
    """Honest vectors, but one too few or one too many."""
    to.write(vectors(random.choice([texts[1:], [*texts, "nobody's"]])))


async def late(texts: Sequence[str], to: StreamWriter) -> None:
    """The honest answer, when nobody waits for it any more."""
    await asyncio.sleep(LATE_SECONDS)
    to.write(vectors(texts))


async def twice(texts: Sequence[str], to: StreamWriter) -> None:
    """The honest answer, and the same again: whoever uses the connection next must not get it."""
    to.write(vectors(texts) * 2)


async def fail(texts: Sequence[str], to: StreamWriter) -> None:
    """An honest error."""
    status = random.choice(["500 Internal Server Error", "502 Bad Gateway", "424 Failed Dependency"])
    to.write(reply(b'{"error":"out of luck","error_type":"Backend"}', status))


async def refuse(texts: Sequence[str], to: StreamWriter) -> None:
    """Overloaded, or not ready."""
    status = random.choice(["429 Too Many Requests", "503 Service Unavailable"])
    to.write(reply(b'{"error":"Model is overloaded","error_type":"Overloaded"}', status))


async def flap(texts: Sequence[str], to: StreamWriter) -> None:
    """Well and not in quick turns."""
    await (well if int(time.monotonic() / FLAP_SECONDS) % 2 else reset)(texts, to)


Way = Callable[[Sequence[str], StreamWriter], Awaitable[None]]
ALL: tuple[Way, ...] = (
    *(well, hang, drip, late, reset, close, flap, garbage, noise, truncate, miscount, twice, fail, refuse),
)
WAYS = {way.__name__: way for way in ALL}


class Server:
    """The same ways for every connection."""

    def __init__(self) -> None:
        self._ways: list[Way] = [well]
        self._treated = 0
        self._line = b""

    async def serve(self, port: int) -> None:
        """Listen, say where, and go on until standard input ends."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", port)
        tell(server.sockets[0].getsockname()[1])
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, self._obey, ended)
        await ended.wait()

    def _obey(self, ended: asyncio.Event) -> None:
        read = os.read(0, 1024)
        if not read:
            ended.set()
        *lines, self._line = (self._line + read).split(b"\n")
        for line in lines:
            self._ways = [WAYS[name] for name in line.decode().split()]
            tell(self._treated)
            self._treated = 0

    async def _converse(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection: a request at a time."""
        try:
            while not writer.is_closing():
                await self._answer(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        method, path, body = await read_request(reader)
        way = random.choice(self._ways)
        if method == "GET":
            if way in (hang, drip):  # then all of it does
                await hang((), writer)
            writer.write(reply(json.dumps(INFO).encode()) if path in ("/info", "/health") else NOT_FOUND)
            return
        self._treated += 1
        await asyncio.sleep(BATCH_SECONDS)
        await way(json.loads(body)["inputs"], writer)


NOT_FOUND = reply(b"{}", "404 Not Found")


def tell(number: int) -> None:
    """A line on standard output."""
    os.write(1, b"%d\n" % number)


async def read_request(reader: StreamReader) -> tuple[str, str, bytes]:
    """A request's method, path and body, whose length must be announced."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    method, path, _ = head.split(" ", 2)
    length = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
    return method.upper(), path, await reader.readexactly(length)


if __name__ == "__main__":
    asyncio.run(Server().serve(int(sys.argv[1])))
