"""An upstream for tests that speaks TEI's `POST /embed` over real HTTP, and misbehaves when it is told to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import threading
from typing import Self

from aiohttp import web


def vector(text: str) -> list[float]:
    """A vector that only this text has."""
    return [number / 2**32 for number in struct.unpack("<4I", hashlib.sha256(text.encode()).digest()[:16])]


class Upstream:
    """Runs in a thread of its own; `batches` is what came, `answer_with` replaces the honest answer."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.answer_with: tuple[int, bytes] | None = None
        self.arrived = threading.Semaphore(0)  # released once for every batch that has come
        self.port = 0
        self._gate: asyncio.Event
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self.let_go()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def hold(self) -> None:
        """Answer nothing until `let_go`."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def let_go(self) -> None:
        """Answer what waits and what comes."""
        self._loop.call_soon_threadsafe(self._gate.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._gate, self._stop = asyncio.Event(), asyncio.Event()
        self._gate.set()
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_post("/embed", self._embed)
        app.router.add_post("/custom/path", self._embed)
        app.router.add_get("/health", self._health)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _embed(self, request: web.Request) -> web.Response:
        inputs = (await request.json())["inputs"]
        self.batches.append(inputs)
        self.arrived.release()
        await self._gate.wait()
        if self.answer_with is not None:
            status, body = self.answer_with
            return web.Response(status=status, body=body, content_type="application/json")
        return web.json_response([vector(text) for text in inputs], dumps=json.dumps)
