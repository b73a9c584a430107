"""Upstreams for tests that speak TEI's `POST /embed` and misbehave when they are told to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import threading
from collections.abc import Awaitable, Callable
from typing import Self

from aiohttp import web


def vector(text: str) -> list[float]:
    """A vector that only this text has."""
    return [number / 2**32 for number in struct.unpack("<4I", hashlib.sha256(text.encode()).digest()[:16])]


class InThread:
    """A server in a thread of its own: `_runner`, which runs there, says what it serves. Port 0 is any."""

    def __init__(self) -> None:
        self.port = 0
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def _runner(self) -> web.BaseRunner:
        raise NotImplementedError

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = self._runner()
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()


class Upstream(InThread):
    """An honest one; `batches` is what came, `answer_with` replaces the honest answer.

    A batch with the text that it `refuses` is 422, in TEI's words; one with the `Authorization` that it
    `forbids` is 403.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.answer_with: tuple[int, bytes] | None = None
        self.refuses: str | None = None
        self.forbids: str | None = None
        self.authorizations: list[str] = []  # of each batch
        self.arrived = threading.Semaphore(0)  # released once for every batch that has come
        self._gate: asyncio.Event

    def __exit__(self, *error: object) -> None:
        self.let_go()
        super().__exit__(*error)

    def hold(self) -> None:
        """Answer nothing until `let_go`."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def let_go(self) -> None:
        """Answer what waits and what comes."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def _runner(self) -> web.BaseRunner:
        self._gate = asyncio.Event()
        self._gate.set()
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_post("/embed", self._embed)
        app.router.add_post("/custom/path", self._embed)
        app.router.add_get("/health", self._health)
        return web.AppRunner(app, handler_cancellation=True)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _embed(self, request: web.Request) -> web.Response:
        inputs = (await request.json())["inputs"]
        self.batches.append(inputs)
        self.authorizations.append(request.headers.get("authorization", ""))
        self.arrived.release()
        await self._gate.wait()
        if self.answer_with is not None:
            status, body = self.answer_with
            return web.Response(status=status, body=body, content_type="application/json")
        if self.forbids == self.authorizations[-1]:
            return web.json_response({"error": "no access to this model"}, status=403)
        if self.refuses in inputs:
            return web.json_response({"error": f"Input validation error: {self.refuses}"}, status=422)
        return web.json_response([vector(text) for text in inputs], dumps=json.dumps)


def reply(body: bytes, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    """A reply as bytes on the wire, of any announced length."""
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n".encode() + body


def honest(texts: list[str]) -> bytes:
    """The reply that the texts should get."""
    return reply(json.dumps([vector(text) for text in texts], separators=(",", ":")).encode())


Script = Callable[[asyncio.StreamWriter, list[str]], Awaitable[None]]


class RawUpstream:
    """An upstream down to its bytes, in the test's own loop: each POST is answered by the next of `scripts`.

    When there are none left it is honest. A script that closes the connection ends it. GETs are 404. What is in
    `early` is said as soon as a POST's head has come.
    """

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.early: list[bytes] = []
        self.posts: list[list[str]] = []
        self.heads: list[str] = []
        self.connections = 0  # on which a POST has come
        self.port = 0
        self._server: asyncio.Server
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**26)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in list(self._open):
            writer.close()

    async def until_left(self) -> None:
        """Wait until every client has hung up; fail if they do not in time."""
        async with asyncio.timeout(10):
            while self._open:
                await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        posts = 0
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if head.startswith("GET "):
                    writer.write(reply(b"", "404 Not Found"))
                    continue
                self.connections += not posts
                posts += 1
                self.heads.append(head)
                if self.early:
                    writer.write(self.early.pop(0))
                    await reader.read()
                    return
                length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
                texts = json.loads(await reader.readexactly(length))["inputs"]
                self.posts.append(texts)
                if self.scripts:
                    await self.scripts.pop(0)(writer, texts)
                else:
                    writer.write(honest(texts))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()
