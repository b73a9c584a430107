"""The scheduler: a state machine that decides who leaves with whom and when.

It is driven by five verbs, each of which is told the time and touches nothing outside: `submit`, `cancel`,
`take_batch`, `complete`, `next_wakeup`. Requests that end on the way (answered, failed, waited too long) are
handed out by `collect_ended`; every admitted request that is not cancelled is handed out exactly once. The
same class runs under asyncio in the server and in the library, and on a fake clock in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from carpool.core.admission import Limits
from carpool.core.batch import Batch
from carpool.core.policy import BatchPolicy, make_policy
from carpool.core.queue import Queue
from carpool.core.request import Request
from carpool.errors import BackendError, Overloaded, TimedOut


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """A moment of the scheduler: items `waiting`, batches `in_flight`, and the `slots` for them."""

    waiting: int
    in_flight: int
    slots: int


class Scheduler:
    """Forms batches from requests. Times are floats in seconds on any clock that does not run backwards."""

    def __init__(self, policy: BatchPolicy, limits: Limits) -> None:
        self._max_batch_size = policy.max_batch_size
        self._policy = make_policy(policy)
        self._slots = limits.max_in_flight
        self._max_queue_size = inf if limits.max_queue_size is None else limits.max_queue_size
        self._queue_timeout = inf if limits.queue_timeout is None else limits.queue_timeout
        self._queue = Queue()
        self._in_flight = 0
        self._batches = 0
        self._look_at = inf  # when the next batch may leave, as far as is known
        self._ended: list[Request] = []

    def __repr__(self) -> str:
        return f"<Scheduler: {len(self._queue)} waiting, {self._in_flight} of {self._slots} slots busy>"

    def submit(self, now: float, request: Request) -> None:
        """Admit a request to the queue, or raise `Overloaded`."""
        size = len(request.items)
        if not size:
            raise ValueError("a request has one item at least")
        if len(self._queue) + size > self._max_queue_size:
            raise Overloaded(
                f"the queue is full: {len(self._queue)} items wait",
                f"at most {self._max_queue_size} may wait; come back later",
            )
        request.arrived = now
        request.deadline = now + self._queue_timeout
        self._queue.push(request)
        self._look_at = now

    def cancel(self, request: Request) -> None:
        """Forget a request whose caller has gone: it leaves the queue at once, and its results go nowhere."""
        if not request.ended:
            request.ended = True
            self._queue.withdraw(request)

    def take_batch(self, now: float) -> Batch | None:
        """The batch that leaves now, if one does; ask again until none does."""
        self._look_at = inf
        oldest = self._drop_expired(now)
        if oldest is None or self._in_flight >= self._slots:
            return None
        departure = self._policy.departure(now, len(self._queue), oldest.arrived)
        if departure.at > now:
            self._look_at = departure.at
            return None
        self._in_flight += 1
        self._batches += 1
        parts = self._queue.take(self._max_batch_size)
        return Batch(self._batches, parts, now, departure.reason)

    def complete(self, now: float, batch: Batch, outcome: Sequence[Any] | BaseException) -> None:
        """Pair what the backend returned with who asked. An error, or a wrong count, is everyone's error."""
        self._in_flight -= 1
        self._look_at = now
        if not isinstance(outcome, BaseException) and len(outcome) != len(batch):
            outcome = BackendError(
                f"the backend returned {len(outcome)} results for {len(batch)} inputs",
                "it must return exactly one result per input, in their order",
            )
        position = 0
        for request, start, stop in batch.parts:
            if not request.ended:
                if isinstance(outcome, BaseException):
                    request.fail(outcome)
                    self._hand_out(request)
                elif request.receive(start, outcome[position : position + stop - start]):
                    self._hand_out(request)
            position += stop - start

    def next_wakeup(self) -> float | None:
        """When to call `take_batch` again if nothing else happens before; None if there is no need."""
        oldest = self._queue.front()
        wakeup = min(self._look_at, oldest.deadline if oldest else inf)
        return None if wakeup == inf else wakeup

    def collect_ended(self) -> list[Request]:
        """The requests that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def statistics(self) -> SchedulerStatistics:
        """A snapshot of the queue and the slots."""
        return SchedulerStatistics(len(self._queue), self._in_flight, self._slots)

    def _drop_expired(self, now: float) -> Request | None:
        """End what has waited too long; the oldest request that may still leave, if any.

        One timeout holds for all, so deadlines are in order of arrival and the front expires first.
        """
        while (oldest := self._queue.front()) is not None and oldest.deadline <= now:
            waited = (now - oldest.arrived) * 1000
            oldest.fail(
                TimedOut(f"timed out after waiting {waited:.0f} ms in the queue", "it was not run; try again")
            )
            self._hand_out(oldest)
        return oldest

    def _hand_out(self, request: Request) -> None:
        self._queue.withdraw(request)
        self._ended.append(request)
