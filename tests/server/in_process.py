"""The fast lane in this process, over a backend that answers at once with what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from carpool.core.policy import BatchPolicy
from carpool.core.replica import Capacity
from carpool.observe.metrics import Metrics
from carpool.runtime.batcher import Batcher
from carpool.server.app import create_app
from carpool.server.fast_lane import FastLaneProtocol, fast_lane
from carpool.server.models import ServedModel
from carpool.server.routes import batched_routes
from carpool.server.service import BodyLimits, Service

KEEP_ALIVE = 5  # seconds of the connections' clock


class Echo:
    """Answers each text with an array of it, and of `padding` more bytes; `run_items` counts what was run."""

    def __init__(self, padding: int = 0) -> None:
        self.capacity = Capacity()
        self.run_items = 0
        self.gate = asyncio.Event()  # closed, it keeps every batch waiting
        self.gate.set()
        self._tail = b',"' + b"x" * padding + b'"]' if padding else b"]"

    async def start(self, on_change: Any) -> None:
        """Always ready."""

    async def run(self, items: Sequence[bytes], group: Hashable = None) -> Sequence[memoryview]:
        """All the answers in one buffer, of which each caller gets a slice."""
        self.run_items += len(items)
        await self.gate.wait()
        assert isinstance(json.loads(b"[" + b",".join(items) + b"]"), list)
        answers = [b"[" + item + self._tail for item in items]
        whole, slices, start = memoryview(b"".join(answers)), [], 0
        for answer in answers:
            slices.append(whole[start : start + len(answer)])
            start += len(answer)
        return slices

    async def close(self) -> None:
        """Nothing to release."""

    def trouble(self) -> str | None:
        """Never."""
        return None


class HandClock:
    """A loop for a server's connections: all is the running one's but the time, which stands still.

    Only `advance` moves it, and rings the timers that are due.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._now = 0.0
        self._timers: list[Timer] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def time(self) -> float:
        """Seconds that `advance` was told."""
        return self._now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Like a loop's, but by this clock."""
        timer = Timer(self._now + seconds, callback)
        self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Each timer rings at its time, also one that another has set."""
        end = self._now + seconds
        while due := [each for each in self._timers if each.when <= end]:
            first = min(due, key=lambda each: each.when)
            self._timers.remove(first)
            self._now = first.when
            if first.callback is not None:
                first.callback()
        self._now = end


@dataclass
class Timer:
    """A call to come, in seconds of a `HandClock`."""

    when: float
    callback: Callable[[], None] | None

    def cancel(self) -> None:
        """It does not ring, and refers to nobody."""
        self.callback = None


@dataclass
class Lane:
    """A server in this process. `connections` are uvicorn's, of this server alone, and live by `clock`."""

    port: int
    service: Service
    backend: Echo
    state: ServerState
    clock: HandClock

    @property
    def connections(self) -> set[FastLaneProtocol]:
        """Those that are open."""
        return {each for each in self.state.connections if isinstance(each, FastLaneProtocol)}


@asynccontextmanager
async def lane(
    backend: Any, limit: int = 1000, lend: Callable[[int], memoryview | None] | None = None
) -> AsyncIterator[Lane]:
    """Serve on a free port, until the end of the block. What `lend` gives room for is no text."""
    metrics = Metrics()
    batcher: Batcher[bytes, Any] = Batcher(backend, BatchPolicy(), name="default", observers=(metrics,))
    metrics.watch("default", batcher.statistics)
    model = ServedModel(
        "default", "echo", batcher, [backend], takes="data" if lend else "text", dedupe=not lend, lend=lend
    )
    service = Service([model], metrics, BodyLimits(text=limit, data=limit))
    await service.start()
    config = uvicorn.Config(
        create_app(service),
        http=fast_lane(service, batched_routes(service)),
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    clock = HandClock(loop)

    def connection() -> asyncio.Protocol:
        make: Any = config.http_protocol_class
        protocol: asyncio.Protocol = make(config=config, server_state=state, app_state={}, _loop=clock)
        return protocol

    server = await loop.create_server(connection, "127.0.0.1", 0)
    try:
        yield Lane(server.sockets[0].getsockname()[1], service, backend, state, clock)
    finally:
        server.close()
        for each in list(state.connections):
            each.transport.abort()
        await service.close()
