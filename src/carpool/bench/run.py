"""One run: a load on a target, from the first connection to the figures."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any, TypeVar

from carpool.bench.arrivals import arrivals
from carpool.bench.client import ClosedLoop, Load, OpenLoop
from carpool.bench.dialects import Target
from carpool.bench.progress import show
from carpool.bench.record import Record
from carpool.bench.scrape import Batches, between, scrape
from carpool.bench.summary import Results, summarise
from carpool.errors import CarpoolError

T = TypeVar("T")

TRIES = 2  # of a run that is one of many: machines have bad moments
_TICK = 0.05  # seconds between two looks at how late a closed loop's own event loop is
_SPARE_FILES = 64  # descriptors that are not connections


class CouldNotKeepUp(CarpoolError):
    """The load generator was the bottleneck, so the figures say nothing of the server."""


@dataclass(frozen=True)
class Plan:
    """What load: an open loop if there is a `rate` or a trace, else a closed one of so many `users`."""

    duration: float
    warm_up: float
    users: int = 0
    rate: float = 0.0
    arrivals: str = "poisson"
    trace: Path | None = None
    seed: str = "1"
    patience: float = 30.0  # seconds that the last requests are waited for
    connections: int = 4096  # at most, in an open loop
    late_limit: float = 0.010  # seconds that the generator itself may be late (p99); more is no measurement

    @property
    def is_open(self) -> bool:
        """Whether requests are sent at times of their own."""
        return not self.users

    @property
    def title(self) -> str:
        """The load, in words."""
        if not self.is_open:
            return f"{self.users} users"
        source = self.trace.name if self.trace else self.arrivals
        return f"{self.rate:g}/s {source}" if self.rate else source

    def make(self, target: Target, requests: Sequence[bytes]) -> Load:
        """The load that this describes."""
        if not self.is_open:
            return ClosedLoop(target, requests, Record(), self.users)
        times = arrivals(self.arrivals, self.rate, self.warm_up + self.duration, self.seed, self.trace)
        return OpenLoop(target, requests, Record(), times, self.connections)


def run(target: Target, requests: Sequence[bytes], plan: Plan, label: str = "", tries: int = 1) -> Results:
    """Put the load on the target until it could be kept up. Raises `CouldNotKeepUp`, and `Unreachable`."""
    for _ in range(tries):
        results = measure(target, requests, plan, label)
        if not results.generator.complaint and (results.throughput or results.errors):
            break
    if results.generator.complaint:
        raise CouldNotKeepUp(
            f"this run cannot be believed: {results.generator.complaint}",
            "lower the load, raise --connections, or leave the load generator a core of its own",
        )
    if not results.throughput:
        seen = ", ".join(f"{count} x {error}" for error, count in results.errors.items())
        unseen = "no answer at all" if isnan(results.until_last) else "all answers came after the end"
        raise CarpoolError(f"{target.url} gave no good answer", seen or unseen)
    return results


def measure(target: Target, requests: Sequence[bytes], plan: Plan, label: str = "") -> Results:
    """The same, whether or not the figures can be believed."""
    _allow_files(max(plan.users, plan.connections) + _SPARE_FILES)
    return on_a_fast_loop(_measure(target, requests, plan, label or plan.title))


def on_a_fast_loop(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def _measure(target: Target, requests: Sequence[bytes], plan: Plan, label: str) -> Results:
    load = plan.make(target, requests)
    await load.prepare()
    lag: list[float] = []
    first = await asyncio.to_thread(scrape, target.base)
    # The thread's, as the load generator is one: a program that measures may do something in others.
    used, started = time.thread_time(), time.perf_counter()
    with _beside(show(load, label, plan.warm_up + plan.duration)), _beside(_watch_lag(lag)):
        warm = asyncio.create_task(_scrape_after(plan.warm_up, target))
        await load.run(plan.warm_up, plan.duration, plan.patience)
    cpu_share = (time.thread_time() - used) / (time.perf_counter() - started)
    told = await asyncio.to_thread(scrape, target.base)
    sizes, average = between(await warm, told)
    if average is None:  # on a machine that stalls it told of the warm-up when all was over: that counts then
        sizes, average = between(first, told)
    late = load.record.late if plan.is_open else lag
    return summarise(load.record, plan.duration, late, cpu_share, plan.is_open, plan.late_limit, sizes, average)


async def _scrape_after(seconds: float, target: Target) -> Batches | None:
    await asyncio.sleep(seconds)
    return await asyncio.to_thread(scrape, target.base)


async def _watch_lag(lag: list[float]) -> None:
    """How much later than asked for the event loop wakes up."""
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_TICK)
        lag.append(max(0.0, time.perf_counter() - before - _TICK))


@contextmanager
def _beside(work: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Something that goes on meanwhile."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()


def _allow_files(count: int) -> None:
    """Raise the limit of open files as far as that is allowed."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
