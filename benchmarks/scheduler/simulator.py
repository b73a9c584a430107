"""Carpool's own scheduler on simulated time.

A discrete-event loop around the one `Scheduler` class that the server and the library run, so what is
measured here is what they do, and an hour of load takes seconds. After every event it does what
`carpool.runtime.batcher` does: `take_batch` until there is none, `collect_ended`, `next_wakeup`. A simulation
with one seed always gives the same numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from itertools import compress
from math import inf, log, nan, sqrt
from random import Random

from carpool.core.batch import Batch
from carpool.core.request import Request
from carpool.core.scheduler import Scheduler
from carpool.errors import CarpoolError

ARRIVAL, CANCEL, BATCH_END = range(3)
STUCK_AFTER = 10_000  # wake-ups in a row at which time stands still: the scheduler would spin a real loop


@dataclass(frozen=True)
class Device:
    """`slots` equal, independent slots; a batch of cost x takes a + c·x seconds, give or take the noise.

    The cost is the number of items, or where items have lengths the padded size, count times longest.
    `noise` is the coefficient of variation of a lognormal factor whose mean is 1. The defaults are the main
    case of the design's measurements.
    """

    slots: int = 1
    a: float = 0.008
    c: float = 0.0005
    noise: float = 0.1

    def seconds(self, cost: float) -> float:
        """How long a batch takes, without the noise."""
        return self.a + self.c * cost


@dataclass(frozen=True)
class Workload:
    """An open loop: request i arrives at `times[i]` (ascending), whatever becomes of the others.

    `lengths` and `tenants` describe the requests. `timeout` is their deadline after arrival; `patience` is
    when a caller still without an answer hangs up. Where `told` is false the scheduler learns nothing of
    lengths, tenants and deadlines: the reference that they are compared with.
    """

    times: list[float]
    lengths: list[int] | None = None
    tenants: list[str] | None = None
    timeout: float | None = None
    patience: float | None = None
    told: bool = True

    def request(self, position: int) -> Request:
        """The request at a position. Its only item is the position, by which everything is looked up."""
        if not self.told:
            return Request((position,))
        return Request(
            (position,),
            costs=None if self.lengths is None else (self.lengths[position],),
            tenant="" if self.tenants is None else self.tenants[position],
            timeout=self.timeout,
        )


@dataclass(frozen=True)
class ClosedLoop:
    """`clients` callers, each of whom asks again as soon as it is answered, until `count` answers.

    Nobody is exactly as fast as the others: each returns after a time between 0 and `jitter` seconds, and
    they start within `start` seconds. The jitter is the one of the design's measurements; the start is what
    repeats them, and it matters: a timeout of its length or more finds all clients together and keeps them so.
    """

    clients: int
    count: int
    jitter: float = 0.001
    start: float = 0.002


@dataclass
class Outcome:
    """What became of every request, by its position; times are in seconds.

    A latency runs from arrival to answer and is `nan` where there was none.
    """

    arrived: list[float]
    latencies: list[float]
    batch_sizes: list[int] = field(default_factory=list)
    last_end: float = 0.0

    def since(self, time: float, counts: Sequence[bool] | None = None) -> list[float]:
        """The latencies of the requests that arrived at `time` or later, of those that count."""
        first = bisect_left(self.arrived, time)
        latencies = self.latencies[first:]
        return latencies if counts is None else list(compress(latencies, counts[first:]))

    def rate(self, since: float, until: float, within: float = inf) -> float:
        """Answers per second between two times, of those that took `within` seconds at most."""
        count = 0
        for arrived, latency in zip(self.arrived, self.latencies, strict=True):
            if latency <= within and since <= arrived + latency < until:
                count += 1
        return count / (until - since)


def simulate(scheduler: Scheduler, device: Device, load: Workload | ClosedLoop, seed: int) -> Outcome:
    """Run a load through a scheduler that nobody has used yet; the end is when nothing is left to happen."""
    return _Simulation(scheduler, device, load, seed).run()


class _Simulation:
    """One run. An event is (time, tie-breaking number, kind, its subject)."""

    def __init__(self, scheduler: Scheduler, device: Device, load: Workload | ClosedLoop, seed: int) -> None:
        self._scheduler = scheduler
        self._device = device
        self._random = Random(f"device {seed}")
        # A lognormal factor of mean 1 with this coefficient of variation.
        self._sigma = sqrt(log(1 + device.noise**2))
        self._free_at = [0.0] * device.slots  # a heap; batches beyond the slots wait at the device, in order
        self._answers = 0
        if isinstance(load, ClosedLoop):
            self._clients: ClosedLoop | None = load
            self._load = Workload(sorted(self._random.random() * load.start for _ in range(load.clients)))
        else:
            self._clients = None
            self._load = load
        # Ascending, and so a heap already.
        self._events: list[tuple[float, int, int, int | Request | Batch]] = [
            (time, position, ARRIVAL, position) for position, time in enumerate(self._load.times)
        ]
        self._ordinal = len(self._events)
        self._outcome = Outcome([], [])

    def run(self) -> Outcome:
        """The event loop. Arrivals at one instant are followed by one kick, as in a turn of a real loop."""
        events, scheduler = self._events, self._scheduler
        wakeup: float | None = None
        last, standstill = -1.0, 0
        while events or wakeup is not None:
            if events and (wakeup is None or events[0][0] <= wakeup):
                now, _, kind, subject = heappop(events)
                if kind == ARRIVAL:
                    assert isinstance(subject, int)
                    self._arrive(now, subject)
                    if events and events[0][0] == now and events[0][2] == ARRIVAL:
                        continue
                elif kind == BATCH_END:
                    assert isinstance(subject, Batch)
                    scheduler.complete(now, subject, subject.items)
                    self._end(now)
                else:
                    assert isinstance(subject, Request)
                    scheduler.cancel(subject)
                standstill = 0
            else:
                assert wakeup is not None
                now = max(wakeup, last)
                standstill = standstill + 1 if now == last else 0
                if standstill > STUCK_AFTER:
                    raise RuntimeError(f"{scheduler!r} asks to be woken at {now} again and again")
            last = now
            while (batch := scheduler.take_batch(now)) is not None:
                self._start(now, batch)
            self._end(now)
            if self._clients is not None and self._answers >= self._clients.count:
                break
            wakeup = scheduler.next_wakeup()
        self._outcome.last_end = last
        return self._outcome

    def _push(self, time: float, kind: int, subject: int | Request | Batch) -> None:
        self._ordinal += 1
        heappush(self._events, (time, self._ordinal, kind, subject))

    def _arrive(self, now: float, position: int) -> None:
        load, outcome = self._load, self._outcome
        # Clients are all alike: their requests are numbered in order of arrival.
        request = load.request(position) if self._clients is None else Request((len(outcome.arrived),))
        outcome.arrived.append(now)
        outcome.latencies.append(nan)
        try:
            self._scheduler.submit(now, request)
        except CarpoolError:
            return
        if load.patience is not None:
            self._push(now + load.patience, CANCEL, request)

    def _start(self, now: float, batch: Batch) -> None:
        lengths = self._load.lengths
        size = len(batch)
        cost = size if lengths is None else size * max(lengths[position] for position in batch.items)
        self._outcome.batch_sizes.append(size)
        noise = self._random.lognormvariate(-(self._sigma**2) / 2, self._sigma)
        start = max(now, self._free_at[0])
        end = start + self._device.seconds(cost) * noise
        heapreplace(self._free_at, end)
        self._push(end, BATCH_END, batch)

    def _end(self, now: float) -> None:
        outcome, clients = self._outcome, self._clients
        for request in self._scheduler.collect_ended():
            if request.error is None:
                outcome.latencies[request.items[0]] = now - request.arrived
                self._answers += 1
            if clients is not None:
                self._push(now + self._random.random() * clients.jitter, ARRIVAL, 0)
