"""An open loop of single texts over HTTP: each is sent when it is meant to be, whatever became of the others.

Latency counts from when a text was *meant* to be sent, so a server that stalls cannot slow the clock down.
It knows nothing of the server but its URL. Run it with `device.run_precisely`.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import httptools

from benchmarks.device import SPIN_SECONDS

DRAIN_SECONDS = 30.0  # after the last request of a round; what is not answered by then has failed
FIRST_CONNECTIONS = 32
MOST_CONNECTIONS = 900  # below the usual limit of 1024 open files; a text that finds none free waits
SPIN_SHARE = 0.05  # of a core that the generator may burn to send in time: the machine is the server's too


class Connection(asyncio.Protocol):
    """A keep-alive connection of the load generator: one request at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self.number: int | None = None  # of the request that it carries

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready to carry a request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pool.release(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Gone, with what it carried."""
        self._pool.lose(self)

    def send(self, number: int, request: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self.number = number
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Parse a piece of the reply."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """The reply is here: free for the next request."""
        assert self.number is not None
        number, self.number = self.number, None
        self._pool.receive(number, self._parser.get_status_code())
        self._pool.release(self)

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


class Pool:
    """Sends requests with so many texts, each by a connection that is free; opens connections as needed.

    No two requests are alike, since the server computes equal texts only once. Times are those of
    `time.monotonic`, which is the loop's clock. What failed is never `answered`.
    """

    def __init__(self, url: str, texts: int | None = None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        text = f"text %012d of {secrets.token_hex(8)}"
        # A server takes one `input`, the device a list of `inputs`.
        content = json.dumps(
            {"input": text} if texts is None else {"inputs": [text] + ["a text"] * (texts - 1)}
        )
        length = len(content % 0)
        head = f"POST /embed HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        self._request = f"{head}content-length: {length}\r\n\r\n{content}".encode()
        self._requests = 0
        self._free: list[Connection] = []
        self._all: list[Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._backlog: deque[int] = deque()
        self._times: Sequence[float] = ()
        self._next = 0
        self._spin = SPIN_SECONDS
        self._left = 0
        self._done = asyncio.Event()
        self.sent: dict[int, float] = {}
        self.answered: dict[int, float] = {}

    async def open(self, count: int) -> None:
        """Have this many connections."""
        for _ in range(count - len(self._all)):
            self._grow()
        await asyncio.gather(*self._opening)

    async def send_at(self, times: Sequence[float]) -> None:
        """Send a request at each of the times, and wait for the answers. Raises `TimeoutError`."""
        self._times, self._next, self._left = times, 0, len(times)
        self._spin = min(SPIN_SECONDS, SPIN_SHARE * (times[-1] - times[0]) / len(times))
        self._done.clear()
        self._send_due()
        async with asyncio.timeout_at(times[-1] + DRAIN_SECONDS):
            await self._done.wait()

    async def call(self) -> float:
        """Send one request and wait; how many seconds that took."""
        await self.send_at([time.monotonic()])
        return self.answered[0] - self.sent[0]

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in self._all:
            connection.close()

    def release(self, connection: Connection) -> None:
        """A connection is free: for who waits for one, or for later. The last used is used first."""
        if self._backlog:
            self._start(connection, self._backlog.popleft())
        else:
            self._free.append(connection)

    def receive(self, number: int, status: int) -> None:
        """A reply has come; only a good one is an answer."""
        if status == 200:
            self.answered[number] = time.monotonic()
        self._left -= 1
        if not self._left:
            self._done.set()

    def lose(self, connection: Connection) -> None:
        """A connection is gone, and what it carried has failed."""
        if connection in self._free:
            self._free.remove(connection)
        if connection.number is not None:
            self.receive(connection.number, 0)

    def _send_due(self) -> None:
        """Send what is due, and come back shortly before the next one is."""
        while self._next < len(self._times):
            due = self._times[self._next]
            if due - time.monotonic() > self._spin:
                asyncio.get_running_loop().call_at(due - self._spin, self._send_due)
                return
            while time.monotonic() < due:
                pass
            self._send(self._next)
            self._next += 1

    def _send(self, number: int) -> None:
        if self._free:
            self._start(self._free.pop(), number)
        else:
            self._backlog.append(number)
            if len(self._all) < MOST_CONNECTIONS:
                self._grow()

    def _start(self, connection: Connection, number: int) -> None:
        self.sent[number] = time.monotonic()
        self._requests += 1
        connection.send(number, self._request % self._requests)

    def _grow(self) -> None:
        connection = Connection(self)
        self._all.append(connection)
        task = asyncio.get_running_loop().create_task(self._connect(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, connection: Connection) -> None:
        await asyncio.get_running_loop().create_connection(lambda: connection, self._host, self._port)


def poisson(rate: float, count: int, seed: str) -> list[float]:
    """The first arrival times of a Poisson process."""
    draw, now, times = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        times.append(now)
    return times


async def send_load(url: str, times: Sequence[float]) -> tuple[list[float], list[float]]:
    """Send a text at each of the times. The latencies and the latenesses of sending, in ms, sorted."""
    pool = Pool(url)
    await pool.open(FIRST_CONNECTIONS)
    start = time.monotonic()
    intended = [start + after for after in times]
    with suppress(TimeoutError):  # what is not answered has failed
        await pool.send_at(intended)
    pool.close()
    latencies = sorted((at - intended[number]) * 1000 for number, at in pool.answered.items())
    return latencies, sorted((at - intended[number]) * 1000 for number, at in pool.sent.items())


def percentile(ordered: Sequence[float], percent: int) -> float:
    """A percentile of sorted values."""
    return ordered[len(ordered) * percent // 100]
