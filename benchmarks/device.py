"""A synthetic inference server: every batch of b inputs takes exactly `a + c·b` on one of a few devices.

It speaks enough of Text Embeddings Inference to stand behind `carpool serve --inference-url`: `POST /embed`
with `{"inputs": [...]}` or one text, `GET /health`. A client of carpool's own route, `{"input": "a text"}`, is
answered as well, so that the same requests can go here through carpool, through another proxy, or directly.
Since a batch's time is known to a tenth of a millisecond, whatever a measurement through a real server shows
beyond the scheduler's model is that server's own cost.
`GET /statistics` tells what ran since it was last asked, and how far from its due time each reply was made.

    python benchmarks/device.py [--port 0] [--a-ms 8] [--c-ms 0.5] [--slots 1] [--floats 16]

The defaults are the main case of the scheduler's simulations. A device is serial; a batch that finds all of
them busy waits for the first to come free, first come first served. With `--a-ms 0 --c-ms 0` replies are made
at once, on uvloop, whose coarse timers do not matter then: such a server is there to be cheap.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import json
import select
import selectors
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

import httptools
import msgspec
import uvloop

T = TypeVar("T")

# How long before a batch is due the loop wakes up to spin the rest away. Measured on a virtual machine: a
# sleep overruns by 0.24 ms (Linux's timer slack of 0.05 ms, the rest is waking an idle core), 0.37 ms in the
# worst hundredth. With 0.3 ms the median reply is 0.1 us late and one in a hundred 0.2 ms.
SPIN_SECONDS = 0.0003


class PreciseSelector(selectors.DefaultSelector):
    """A selector whose timeouts are as fine as `select`'s: microseconds.

    epoll counts in milliseconds (and libuv's timers do), which would make each batch up to 1 ms late.
    The descriptor of an epoll or a kqueue can itself be waited for, and `select` takes a fraction.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for `timeout` seconds at most, then look without waiting."""
        if timeout is None or timeout > 0:
            select.select([self.fileno()], (), (), timeout)
        return super().select(0)


def run_precisely(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, on a loop whose timers do not wait for the next whole millisecond."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(PreciseSelector())) as runner:
        return runner.run(main)


@dataclass(frozen=True)
class Cost:
    """How long a batch runs, in seconds: `a` for itself and `c` for each input."""

    a: float
    c: float

    def __call__(self, items: int) -> float:
        """The time for a batch of `items`."""
        return self.a + self.c * items


class Devices:
    """When each of the serial devices is free, and what they have run."""

    def __init__(self, cost: Cost, slots: int) -> None:
        self._cost = cost
        self._free_at = [0.0] * slots  # a heap
        self._batches: dict[int, int] = {}  # how many of each size
        self._late: list[float] = []
        self._idle: list[float] = []  # how long each batch's device had had nothing to do

    def occupy(self, now: float, items: int) -> float:
        """Run a batch on the device that is free first; when it is due."""
        free_at = self._free_at[0]
        if free_at:  # not before the first batch
            self._idle.append(max(0.0, now - free_at))
        due = max(now, free_at) + self._cost(items)
        heapq.heapreplace(self._free_at, due)
        self._batches[items] = self._batches.get(items, 0) + 1
        return due

    def note_lateness(self, seconds: float) -> None:
        """Remember how late a reply was made."""
        self._late.append(seconds)

    def statistics(self) -> Mapping[str, float]:
        """What was run since the last call."""
        late, idle, batches = sorted(self._late) or [0.0], sorted(self._idle) or [0.0], self._batches
        self._late, self._idle, self._batches = [], [], {}
        return {
            "batches": sum(batches.values()),
            "items": sum(size * count for size, count in batches.items()),
            "busy_s": sum(self._cost(size) * count for size, count in batches.items()),
            "idle_p50_ms": idle[len(idle) // 2] * 1000,
            "late_p50_ms": late[len(late) // 2] * 1000,
            "late_p99_ms": late[len(late) * 99 // 100] * 1000,
            "late_max_ms": late[-1] * 1000,
        }


class Body(msgspec.Struct):
    """What a client wants embedded: TEI's `inputs`, or carpool's `input`."""

    inputs: list[str] | str | None = None
    input: str | None = None

    def count(self) -> int:
        """How many texts that is."""
        return len(self.inputs) if isinstance(self.inputs, list) else 1


BODY = msgspec.json.Decoder(Body)


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, devices: Devices, floats: int) -> None:
        self._devices = devices
        self._floats = floats
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._received_at = 0.0
        self._target = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where replies go."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without inheriting from it

    def connection_lost(self, error: Exception | None) -> None:
        """Forget it: what still runs for it is not answered."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Parse; a batch counts as begun when its last byte has come."""
        self._received_at = time.monotonic()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._write(reply(b'{"error":"not HTTP"}', "400 Bad Request"))

    def on_message_begin(self) -> None:
        """A new request."""
        self._target, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        """A piece of its target."""
        self._target += url

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer it, a batch when it is due."""
        match self._target:
            case b"/embed":
                self._run(b"".join(self._body))
            case b"/health":
                self._write(reply(b""))
            case b"/statistics":
                self._write(reply(json.dumps(self._devices.statistics()).encode()))
            case _:
                self._write(reply(b'{"error":"no such route"}', "404 Not Found"))

    def _run(self, body: bytes) -> None:
        try:
            items = BODY.decode(body).count()
        except msgspec.DecodeError as error:
            self._write(reply(json.dumps({"error": str(error)}).encode(), "422 Unprocessable Entity"))
            return
        due = self._devices.occupy(self._received_at, items)
        if due <= self._received_at:
            self._finish(due, items)
        else:
            asyncio.get_running_loop().call_at(due - SPIN_SECONDS, self._finish, due, items)

    def _finish(self, due: float, items: int) -> None:
        while (now := time.monotonic()) < due:
            pass
        self._devices.note_lateness(now - due)
        self._write(embeddings(items, self._floats))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


@cache
def embeddings(items: int, floats: int) -> bytes:
    """The reply to a batch of `items`: made once, since computing it is not what is measured."""
    vector = "[" + ",".join(f"{(number % 200 - 100) / 1000:.8f}" for number in range(floats)) + "]"
    return reply(f"[{','.join([vector] * items)}]".encode())


def reply(body: bytes, status: str = "200 OK") -> bytes:
    """An HTTP reply."""
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )


async def serve(port: int, devices: Devices, floats: int) -> None:
    """Listen on loopback, print where, and answer until the process is ended."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(devices, floats), "127.0.0.1", port
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve what the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--a-ms", type=float, default=8.0)
    parser.add_argument("--c-ms", type=float, default=0.5)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--floats", type=int, default=16)
    options = parser.parse_args()
    devices = Devices(Cost(options.a_ms / 1000, options.c_ms / 1000), options.slots)
    run = run_precisely if options.a_ms or options.c_ms else uvloop.run
    with contextlib.suppress(KeyboardInterrupt):
        run(serve(options.port, devices, options.floats))


if __name__ == "__main__":
    main()
