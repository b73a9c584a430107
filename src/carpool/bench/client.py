"""The load generator: HTTP/1.1 as bytes on an `asyncio.Protocol`, without a task or a future for a request.

A connection carries one request at a time. A load decides what a free connection does next: in a `ClosedLoop`
it is a user, who asks again at once; in an `OpenLoop` requests are sent when they are due, whatever became of
the others.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import cycle
from math import inf
from time import perf_counter

import httptools

from carpool.bench.alarm import Alarm
from carpool.bench.dialects import Target
from carpool.bench.record import LOST, UNANSWERED, Record
from carpool.errors import Unreachable

_OPEN_AT_ONCE = 100  # connections: fewer than the backlog of an ordinary listening socket, which is 128
_OPEN_AT_FIRST = 32  # of an open loop, which opens more as it needs them
_ROUNDING = 0.001  # seconds that an event loop's timer may be early
_REST = 0.1  # seconds that a user waits after a connection was refused
# Seconds: requests closer together than that are sent together, so that a ring is not spent on each.
_GRAIN = 0.0002
# Seconds, and a share of its wait, that an open loop is awake before a request is due. On a core that sleeps an
# alarm is 0.15 ms late, which all latencies of a light load would count: 3 % of a p50 of 5 ms.
_AWAKE, _AWAKE_SHARE = 0.0003, 0.1
_MOST_TOGETHER = 64  # requests that are sent before replies are looked at again


class Connection(asyncio.Protocol):
    """A keep-alive connection."""

    __slots__ = ("_load", "_parser", "_transport", "due", "is_busy", "is_open")

    def __init__(self, load: Load) -> None:
        self._load = load
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self.due = 0.0
        self.is_busy = False
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one without inheriting from it

    def connection_lost(self, error: Exception | None) -> None:
        """Gone, with what it carried."""
        self.is_open = False
        self._load.lose(self)

    def send(self, due: float, request: bytes) -> None:
        """Send a request that is, or was, due then."""
        self.due = due
        self.is_busy = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """A piece of a reply."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_complete(self) -> None:
        """A reply is whole. One that nobody asked for, such as a 100, is none."""
        if not self.is_busy or (status := self._parser.get_status_code()) < 200:
            return
        self.is_busy = False
        now = perf_counter()
        self._load.receive(self.due, now, status)
        if self._parser.should_keep_alive():
            self._load.release(self, now)
        else:
            self.close()

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        self._transport.close()


async def _sleep_until(moment: float) -> None:
    """Past a moment, surely: a loop that counts in milliseconds may wake up before it."""
    await asyncio.sleep(max(0.0, moment - perf_counter()) + _ROUNDING)


class Load(ABC):
    """Connections to a target, and a record of what they see."""

    def __init__(self, target: Target, requests: Sequence[bytes], record: Record) -> None:
        self.record = record
        self.in_flight = 0
        self.until = inf  # nothing new is sent from then on
        self._target = target
        self._next_request = cycle(requests).__next__
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._done = asyncio.Event()

    async def open(self, count: int) -> None:
        """Have this many connections. Raises `Unreachable`."""
        while (missing := count - len(self._connections)) > 0:
            try:
                await asyncio.gather(*(self._connect() for _ in range(min(missing, _OPEN_AT_ONCE))))
            except OSError as error:
                raise Unreachable(f"{self._target.base} cannot be reached", str(error)) from None

    @abstractmethod
    async def prepare(self) -> None:
        """Open the first connections. Raises `Unreachable`."""

    async def run(self, warm_up: float, duration: float, patience: float) -> None:
        """Put the load on, count after the warm-up, then wait for what is under way, but only so long."""
        start = perf_counter()
        self.until = start + warm_up + duration
        self.record.restart(start)
        self.start(start)
        if warm_up:
            await _sleep_until(start + warm_up)
            self.record.restart(perf_counter())
        await _sleep_until(self.until)
        self.send_rest()
        if self.in_flight:
            try:
                async with asyncio.timeout(patience):
                    await self._done.wait()
            except TimeoutError:
                self._give_up()
        self.close()

    @abstractmethod
    def start(self, now: float) -> None:
        """Begin."""

    @abstractmethod
    def send_rest(self) -> None:
        """The time is over: send what was due before."""

    @abstractmethod
    def release(self, connection: Connection, now: float) -> None:
        """A connection is free."""

    def receive(self, due: float, now: float, status: int) -> None:
        """A request has ended."""
        self.in_flight -= 1
        self.record.end(due, now, status)
        if not self.in_flight and now >= self.until:
            self._done.set()

    def lose(self, connection: Connection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if connection.is_busy:
            connection.is_busy = False
            self.receive(connection.due, perf_counter(), LOST)

    def close(self) -> None:
        """Hang up everywhere."""
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            connection.close()

    async def _connect(self) -> Connection:
        host, port = self._target.address
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self), host, port, ssl=self._target.tls or None
        )
        self._connections.add(connection)
        return connection

    def _spawn_connection(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect_and_release())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_and_release(self) -> None:
        try:
            connection = await self._connect()
        except OSError:
            await self._refused()
        else:
            self.release(connection, perf_counter())

    @abstractmethod
    async def _refused(self) -> None:
        """A connection could not be made."""

    def _give_up(self) -> None:
        """Who is still waiting has waited in vain."""
        for connection in self._connections:
            if connection.is_busy:
                connection.is_busy = False
                self.receive(connection.due, perf_counter(), UNANSWERED)


class ClosedLoop(Load):
    """So many users, each of whom asks again as soon as the answer is there."""

    def __init__(self, target: Target, requests: Sequence[bytes], record: Record, users: int) -> None:
        super().__init__(target, requests, record)
        self._users = users

    async def prepare(self) -> None:
        """Let every user connect."""
        await self.open(self._users)

    def start(self, now: float) -> None:
        """Everyone asks."""
        for connection in list(self._connections):
            self.release(connection, now)

    def send_rest(self) -> None:
        """Users ask when they are answered, and never late."""

    def release(self, connection: Connection, now: float) -> None:
        """The user's next request."""
        if now < self.until and connection.is_open:
            self.in_flight += 1
            connection.send(now, self._next_request())

    def lose(self, connection: Connection) -> None:
        """The user connects again."""
        super().lose(connection)
        if perf_counter() < self.until:
            self._spawn_connection()

    async def _refused(self) -> None:
        now = perf_counter()
        self.in_flight += 1
        self.receive(now, now, LOST)
        await asyncio.sleep(_REST)
        if perf_counter() < self.until:
            self._spawn_connection()


class OpenLoop(Load):
    """Requests at given times after the start, over as many connections as that takes, up to a limit.

    When all of them are waiting for replies the next request is sent late, which the record tells.
    """

    def __init__(
        self,
        target: Target,
        requests: Sequence[bytes],
        record: Record,
        times: Iterator[float],
        most_connections: int,
    ) -> None:
        super().__init__(target, requests, record)
        self._times = times
        self._most_connections = most_connections
        self._free: list[Connection] = []
        self._backlog: deque[float] = deque()
        self._begun = 0.0
        self._due = 0.0
        self._next_at = 0.0  # when something is to be sent again
        self._alarm: Alarm

    async def prepare(self) -> None:
        """Open the first connections."""
        await self.open(min(_OPEN_AT_FIRST, self._most_connections))
        self._free.extend(self._connections)
        self._alarm = Alarm(self._send_due)

    def start(self, now: float) -> None:
        """Wait for the first time."""
        self._begun = now
        self._due = now + next(self._times)
        self._send_due()

    def send_rest(self) -> None:
        """A load generator that is behind at the end must not get away with it: all are sent, and are late."""
        while self._due < self.until:
            self._send_due()

    def release(self, connection: Connection, now: float) -> None:
        """It carries who has waited longest, or rests. The last used is used first, the others may go idle."""
        if self._backlog:
            self._start(connection, self._backlog.popleft(), now)
        elif connection.is_open:
            self._free.append(connection)

    def lose(self, connection: Connection) -> None:
        """It is missed only if somebody waits for one."""
        super().lose(connection)
        if connection in self._free:
            self._free.remove(connection)
        if self._backlog:
            self._spawn_connection()

    def close(self) -> None:
        """Hang up, and send nothing more."""
        self._alarm.close()
        super().close()

    async def _refused(self) -> None:
        if self._backlog:
            self.receive(self._backlog.popleft(), perf_counter(), LOST)

    def _give_up(self) -> None:
        while self._backlog:
            self.receive(self._backlog.popleft(), perf_counter(), UNANSWERED)
        super()._give_up()

    def _send_due(self) -> None:
        """Send what is due, and come back shortly before the next is."""
        while (now := perf_counter()) < self._next_at:
            pass
        for _ in range(_MOST_TOGETHER):
            if self._due > now or self._due >= self.until:
                break
            self._send(now)
            now = perf_counter()
            self._due = self._begun + next(self._times)
        if self._due < self.until:
            self._next_at = max(self._due, now + _GRAIN) if self._due > now else now
            self._alarm.set(self._next_at - min(_AWAKE, _AWAKE_SHARE * (self._next_at - now)))

    def _send(self, now: float) -> None:
        self.in_flight += 1
        if self._free:
            self._start(self._free.pop(), self._due, now)
            return
        self._backlog.append(self._due)
        if len(self._connections) + len(self._tasks) < self._most_connections:
            self._spawn_connection()

    def _start(self, connection: Connection, due: float, now: float) -> None:
        self.record.send(now - due)
        connection.send(due, self._next_request())
