"""A scheduler and a backend on a fake clock, for the tests of this directory."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import Any

from carpool.core.batch import Batch
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.request import Request
from carpool.core.scheduler import Scheduler
from carpool.errors import BatchFailed, Overloaded

FIXED, PER_ITEM = 0.008, 0.0005  # the backend's seconds: a batch of 32 takes 24 ms


def batch_seconds(batch: Batch) -> float:
    return FIXED + PER_ITEM * len(batch)


def make(
    size: int = 32,
    slots: int = 1,
    *,
    name: Any = "adaptive",
    queue: int | None = None,
    queue_timeout: float | None = None,
    **policy: Any,
) -> Scheduler:
    return Scheduler(BatchPolicy(name, size, **policy), Limits(slots, queue, queue_timeout))


def submit(scheduler: Scheduler, now: float, *items: Any, **more: Any) -> Request:
    request = Request(items, **more)
    scheduler.submit(now, request)
    return request


def must_take(scheduler: Scheduler, now: float) -> Batch:
    batch = scheduler.take_batch(now)
    assert batch is not None
    return batch


def echo(batch: Batch) -> list[Any]:
    return list(batch.items)


def fails_on(*bad: Any) -> Callable[[Batch], list[Any] | BaseException]:
    """A backend that fails on any batch with one of these items in it."""
    return lambda batch: BatchFailed("bad item") if set(bad) & set(batch.items) else echo(batch)


def taught(scheduler: Scheduler, batches: int = 64, start: float = 0.0) -> float:
    """Let it see batches of all sizes, far apart, so that it knows the curve and no load; when that ends."""
    now, size = start, scheduler._policy.max_batch_size
    for number in range(batches):
        now += 10.0
        for _ in range(1 + number % size):
            submit(scheduler, now, "lesson")
        while scheduler.statistics().waiting:
            if (batch := scheduler.take_batch(now)) is None:
                now = scheduler.next_wakeup() or now
                continue
            now += batch_seconds(batch)
            scheduler.complete(now, batch, echo(batch))
    scheduler.collect_ended()
    return now


def serve_all(
    scheduler: Scheduler, now: float, backend: Callable[[Batch], Sequence[Any] | BaseException] = echo
) -> list[Batch]:
    """Run what waits, one batch after the other, until nothing does; the batches."""
    batches = []
    while (batch := scheduler.take_batch(now)) is not None:
        batches.append(batch)
        now += batch_seconds(batch)
        scheduler.complete(now, batch, backend(batch))
    return batches


class Simulation:
    """Requests at given times, a backend that takes its time, and the scheduler asked as the driver asks it."""

    def __init__(
        self, scheduler: Scheduler, backend: Callable[[Batch], Sequence[Any] | BaseException] = echo
    ) -> None:
        self.scheduler = scheduler
        self.backend = backend
        self.latencies: dict[int, float] = {}  # by the id of the request
        self.ended: list[Request] = []
        self.refused: list[tuple[float, Request, Overloaded]] = []
        self.batches: list[Batch] = []

    def run(self, arrivals: Iterable[tuple[float, Request]]) -> None:
        """Until everything has ended."""
        order = count()
        events: list[tuple[float, int, Request | Batch | None]] = [
            (at, next(order), request) for at, request in arrivals
        ]
        heapq.heapify(events)
        while events:
            now, _, event = heapq.heappop(events)
            if isinstance(event, Request):
                try:
                    self.scheduler.submit(now, event)
                except Overloaded as refusal:
                    self.refused.append((now, event, refusal))
            elif isinstance(event, Batch):
                self.scheduler.complete(now, event, self.backend(event))
            while (batch := self.scheduler.take_batch(now)) is not None:
                self.batches.append(batch)
                heapq.heappush(events, (now + batch_seconds(batch), next(order), batch))
            for request in self.scheduler.collect_ended():
                self.ended.append(request)
                self.latencies[id(request)] = now - request.arrived
            wakeup = self.scheduler.next_wakeup()
            if wakeup is not None and (not events or wakeup < events[0][0]):
                heapq.heappush(events, (wakeup, next(order), None))
