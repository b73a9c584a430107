"""What the scheduler itself costs: CPU time per request of `carpool.core`, alone, on a simulated clock.

50,000 requests a second arrive, and as many leave: four slots, each of which takes batches of 32 that last a
few milliseconds, so the number of those that wait stays as it was filled at the start. Nothing really waits.
After every single arrival and every batch that is back the scheduler is asked what the asyncio driver asks
once per turn of its loop (`take_batch` until there is none, `collect_ended`, `next_wakeup`): the worst case, in
which no two things happen in one turn. The cost of the same loop without a scheduler is subtracted; making
the `Request` is included.

    python benchmarks/scheduler_cost.py [--requests 200000] [--rounds 5] [--bar-us 6] [--profile]

The clock is `process_time`, which does not run while others do; but on cores that share their units with a
neighbour a busy neighbour slows each instruction. The last column, the time of an empty method call while the
row was measured, shows how fast the machine was. `--profile` runs one case under cProfile instead and prints
where the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from timeit import timeit
from typing import get_args

from carpool.core.batch import Batch
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy, PolicyName
from carpool.core.request import Request
from carpool.core.scheduler import Scheduler

RATE = 50_000.0  # requests a second: ten times what one Python process can take in over HTTP
SLOTS = 4
BATCH_SIZE = 32
BATCH_SECONDS = SLOTS * BATCH_SIZE / RATE  # 2.56 ms: as much leaves as arrives
DEPTHS = (
    100,
    1_000,
    10_000,
    100_000,
)  # a cost that grows with the logarithm of the depth is to be seen as such
TENANTS = (1, 1_000)
# Every case draws its deadlines, in seconds after arrival, from here: beyond the longest wait, which is that
# of 100,000 requests at this rate (2 s), so that none is refused, and far enough apart to be in any order.
TIMEOUTS = (5.0, 15.0)


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    policy: PolicyName
    tenants: int
    with_deadlines: bool
    depth: int


class Drive:
    """The driver's calls on a simulated clock. `count` requests, then it stops."""

    def __init__(self, case: Case, count: int) -> None:
        draw = random.Random(0)
        self._count = count
        # Drawn in advance, since drawing is not what is measured.
        self._tenants = [f"tenant {draw.randrange(case.tenants)}" for _ in range(10_000)]
        self._timeouts = [
            draw.uniform(*TIMEOUTS) if case.with_deadlines else None for _ in range(len(self._tenants))
        ]
        policy = BatchPolicy(name=case.policy, max_batch_size=BATCH_SIZE)
        self._scheduler = Scheduler(policy, Limits(max_in_flight=SLOTS))
        self._in_flight: deque[tuple[float, Batch]] = deque()  # all take equally long: the first is back first
        self._batches = 0
        self._answered = 0
        self._wakeup: float | None = None
        self._fill(case.depth)

    def run(self) -> None:
        """Let everything arrive and return what returns meanwhile."""
        scheduler, in_flight = self._scheduler, self._in_flight
        for position in range(self._count):
            now = position / RATE
            while True:
                back = in_flight[0][0] if in_flight else inf
                wakeup = inf if self._wakeup is None else self._wakeup
                if back > now and wakeup > now:
                    break
                if back <= wakeup:
                    batch = in_flight.popleft()[1]
                    scheduler.complete(back, batch, batch.items)
                    self._kick(back)
                else:
                    self._kick(wakeup)
            scheduler.submit(now, self._request(position))
            self._kick(now)

    def run_empty(self) -> None:
        """The same loop without a scheduler: as many arrivals and as many batches, which do nothing."""
        in_flight = deque([BATCH_SECONDS])
        for position in range(self._count):
            now = position / RATE
            while True:
                back = in_flight[0] if in_flight else inf
                if back > now:
                    break
                in_flight.popleft()
                in_flight.append(back + BATCH_SECONDS / SLOTS)

    def check(self, depth: int) -> None:
        """That the case was what it is meant to be: full batches, the queue as deep as before, no failure."""
        waiting = self._scheduler.statistics().waiting
        if abs(waiting - depth) > SLOTS * BATCH_SIZE or self._answered < self._count - SLOTS * BATCH_SIZE:
            raise RuntimeError(f"{waiting} wait instead of {depth}, {self._answered} were answered")

    def _fill(self, depth: int) -> None:
        """Have all slots busy, out of step, and `depth` requests waiting at the time 0."""
        for position in range(depth + SLOTS * BATCH_SIZE):
            self._scheduler.submit(0.0, self._request(position))
        self._kick(0.0)
        batches = [batch for _, batch in self._in_flight]
        self._in_flight = deque(
            (BATCH_SECONDS * (slot + 1) / SLOTS, batch) for slot, batch in enumerate(batches)
        )
        self._answered = 0

    def _request(self, position: int) -> Request:
        which = position % len(self._tenants)
        return Request((position,), tenant=self._tenants[which], timeout=self._timeouts[which])

    def _kick(self, now: float) -> None:
        scheduler = self._scheduler
        while (batch := scheduler.take_batch(now)) is not None:
            self._in_flight.append((now + BATCH_SECONDS, batch))
        for request in scheduler.collect_ended():
            if request.error is not None:
                raise request.error
            self._answered += 1
        self._wakeup = scheduler.next_wakeup()


def measure(case: Case, count: int) -> float:
    """Microseconds per request, once."""
    drive = Drive(case, count)
    gc.collect()
    started = time.process_time()
    drive.run()
    seconds = time.process_time() - started
    drive.check(case.depth)
    empty = time.process_time()
    drive.run_empty()
    seconds -= time.process_time() - empty
    return seconds / count * 1e6


class Nothing:
    """What the speed of the machine is measured with."""

    def do(self) -> None:
        """Nothing."""


def time_method_call(count: int = 200_000) -> float:
    """Nanoseconds of a call of an empty method."""
    return timeit(Nothing().do, number=count, timer=time.process_time) / count * 1e9


def cases() -> Iterator[tuple[Case, Sequence[int]]]:
    """The rows, each with its depths."""
    for policy, tenants, with_deadlines in product(get_args(PolicyName), TENANTS, (False, True)):
        yield Case(policy, tenants, with_deadlines, DEPTHS[0]), DEPTHS


def report(count: int, rounds: int, bar: float) -> bool:
    """Measure all cases and print the table; whether all are below the bar."""
    print(f"CPU us per request, medians of {rounds} runs of {count} requests; the bar is {bar:g} us\n")
    titles = " | ".join(f"{depth:,} wait" for depth in DEPTHS)
    print(f"| policy | tenants | deadlines | {titles} | | a method call, ns |")
    print("|" + " --- |" * (5 + len(DEPTHS)))
    passed = True
    for case, depths in cases():
        row, calls = [], []
        for depth in depths:
            row.append(statistics.median(measure(replace(case, depth=depth), count) for _ in range(rounds)))
            calls.append(time_method_call())
        good = max(row) <= bar
        passed = passed and good
        deadlines = "yes" if case.with_deadlines else "no"
        cells = " | ".join(f"{cost:.2f}" for cost in row)
        verdict = "PASS" if good else "FAIL"
        speed = f"{statistics.median(calls):.0f}"
        print(f"| {case.policy} | {case.tenants:,} | {deadlines} | {cells} | {verdict} | {speed} |", flush=True)
    return passed


def profile(count: int) -> None:
    """Where the time goes in the most demanding case."""
    drive = Drive(Case("adaptive", TENANTS[-1], True, 10_000), count)
    profiler = cProfile.Profile()
    profiler.runcall(drive.run)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Measure and print a table; the exit status is 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bar-us", type=float, default=6.0)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.profile:
        profile(options.requests)
    elif not report(options.requests, options.rounds, options.bar_us):
        sys.exit(1)


if __name__ == "__main__":
    main()
