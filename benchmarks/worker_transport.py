"""What it costs to bring a batch to a worker process and back: time, and the event loop's share of it.

    python -m benchmarks.worker_transport

Every batch goes through the socket, then every batch through shared memory: `backends/process/shared.py` takes
the better one by the size of the batch. The model does nothing but touch each page of what it gets. Medians;
`loop` is the CPU time of the event loop's thread, which is what all other requests wait for.

The second table has a model of 5 ms, and one batch or two at the backend all the time: what a batch takes from
the end of the one before to its own. `ProcessBackend` takes two while they are large.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop

from carpool.backends.process import shared
from carpool.backends.process.parent import ProcessBackend
from carpool.wire.call import INFER, Call

BATCHES = 40
SIZES = ((32, 200), (32, 8_000), (32, 16_000), (32, 64_000), (32, 600_000))
LIMITS = {"socket": (1 << 62, 0), "shared memory": (0, 1 << 62)}
PAGE = 4096
MODEL_SECONDS = 0.005
MODEL_SIZES = ((32, 200), (4, 600_000), (32, 600_000), (4, 3_000_000))


class Nothing:
    """A model that reads its items as fast as memory gives them."""

    info: dict[str, Any] = {}  # noqa: RUF012 (the worker asks for it and changes nothing)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, items: Sequence[memoryview], call: Call = INFER) -> list[bytes]:
        """A number for each item."""
        time.sleep(self.seconds)
        return [b"%d" % sum(item[::PAGE]) for item in items]


def load(seconds: float = 0.0) -> Nothing:
    """What the worker process calls."""
    return Nothing(seconds)


async def measure(count: int, size: int) -> tuple[float, float]:
    """Milliseconds for a batch, and of the loop's CPU."""
    backend = ProcessBackend("benchmarks.worker_transport:load", {})
    await backend.start(lambda: None)
    items = [os.urandom(size) for _ in range(count)]
    seconds, busy = [], []
    for _ in range(BATCHES):
        began, began_busy = time.perf_counter(), time.thread_time()
        await backend.run(items, INFER)
        seconds.append(time.perf_counter() - began)
        busy.append(time.thread_time() - began_busy)
    await backend.close()
    return statistics.median(seconds) * 1e3, statistics.median(busy) * 1e3


async def measure_in_turn(count: int, size: int, at_once: int) -> float:
    """Milliseconds from one batch to the next, so many being at the backend."""
    backend = ProcessBackend("benchmarks.worker_transport:load", {"seconds": MODEL_SECONDS})
    await backend.start(lambda: None)
    items = [os.urandom(size) for _ in range(count)]
    ends = []

    async def ask() -> None:
        for _ in range(BATCHES):
            await backend.run(items, INFER)
            ends.append(time.perf_counter())

    await asyncio.gather(*(ask() for _ in range(at_once)))
    await backend.close()
    return statistics.median(after - before for before, after in pairwise(ends)) * 1e3


def main() -> None:
    """Print the tables."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    )
    loops: dict[str, Callable[[Coroutine[Any, Any, tuple[float, float]]], tuple[float, float]]] = {
        "asyncio": asyncio.run,
        "uvloop": uvloop.run,
    }
    usual = shared.LEAST, shared.MOST
    print("| batch | by | loop | ms | ms of the loop |\n| --- | --- | --- | --- | --- |")
    for count, size in SIZES:
        for way, (shared.LEAST, shared.MOST) in LIMITS.items():
            for name, run in loops.items():
                total, busy = run(measure(count, size))
                print(f"| {count} x {size:,} B | {way} | {name} | {total:.2f} | {busy:.2f} |", flush=True)
    shared.LEAST, shared.MOST = usual
    print(f"\n| batch | ms, one at a time (model {MODEL_SECONDS * 1e3:g}) | two |\n| --- | --- | --- |")
    for count, size in MODEL_SIZES:
        one, two = (uvloop.run(measure_in_turn(count, size, at_once)) for at_once in (1, 2))
        print(f"| {count} x {size:,} B | {one:.2f} | {two:.2f} |", flush=True)


if __name__ == "__main__":
    main()
