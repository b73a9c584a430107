"""Who is let in, and when who is refused should come back.

Two reasons to refuse: the queue is full, or too long for the request's deadline. Both know of fair shares:
a flood of one tenant is before its own requests, and before another's only as far as weights entitle it to be.
"""

from __future__ import annotations

from math import ceil, inf

from carpool.core.limits import Limits
from carpool.core.pool import Pool
from carpool.core.queue import Queue
from carpool.core.replica import Replica
from carpool.core.request import Request
from carpool.core.spread import spread
from carpool.errors import Overloaded, TooLarge

_SAFETY = 1.5  # times the predicted time to an answer must fit before a deadline, or it is not taken in
_LONGEST = 30.0  # seconds that anybody is told to stay away
_SHARE = 0.2  # of the capacity is kept for those who come back
_JITTER = 0.2


class Admission:
    """The gate before one queue; it raises `Overloaded`, and `TooLarge` for what the queue can never hold."""

    __slots__ = ("_come_back", "_pool", "_queue", "_roomy_below", "_roomy_wait", "max_queue_size")

    def __init__(self, limits: Limits, queue: Queue, pool: Pool) -> None:
        self.max_queue_size = inf if limits.max_queue_size is None else limits.max_queue_size
        self._queue = queue
        self._pool = pool
        self._come_back = ComeBack()
        self._roomy_below = 0  # with fewer waiting, nobody waits for longer than the next
        self._roomy_wait = 0.0

    def batch_ended(self) -> None:
        """What was predicted no longer holds."""
        self._roomy_below = 0

    def refuse_unless_entitled(self, now: float, request: Request) -> None:
        """The queue is full: only who has less than a fair share of it may still come in.

        Otherwise a flood of one tenant would have everybody refused. What is taken in beyond the limit is
        limited in turn, or tenants without number could fill the memory.
        """
        queue, size = self._queue, len(request.items)
        if size > self.max_queue_size:  # then there is no time to come back
            raise TooLarge(f"the request has {size} inputs", f"at most {self.max_queue_size} may wait")
        own = queue.waits_of(request.tenant, request.weight)
        share = self.max_queue_size * request.weight / self._weights(request, own)
        if own + size > share or queue.waiting + size > 2 * self.max_queue_size:
            raise self._overloaded(now, f"the queue is full: {queue.waiting} items wait")

    def refuse_if_late(self, now: float, request: Request, timeout: float) -> None:
        """Refuse a request that would not make its deadline.

        What was predicted for one request holds, with two batch times to spare, for those that come after it
        until a batch is back or another batch's worth waits; most deadlines are far beyond even that.
        """
        waiting = self._queue.waiting
        if waiting < self._roomy_below and _SAFETY * self._roomy_wait <= timeout and len(request.items) == 1:
            return
        replica = self._pool.typical(now)
        if replica is None:
            return
        limit = self._pool.limit(replica)
        wait = self._time_to_answer(now, request, replica, limit)
        if _SAFETY * wait > timeout:
            raise self._overloaded(now, f"the queue is too long for a deadline of {timeout * 1000:.0f} ms")
        full = limit * (self._queue.cost + request.cost(0, 1)) / (waiting + 1)
        self._roomy_below = waiting + 1 + limit
        self._roomy_wait = wait + 2 * self._pool.seconds(replica, full)

    def _time_to_answer(self, now: float, request: Request, replica: Replica, limit: int) -> float:
        """How long until a request that arrives now is answered, as predicted.

        Before it goes what waits of its own share, and of others as much as their weights entitle them to.
        """
        queue, pool, size = self._queue, self._pool, len(request.items)
        ahead = float(queue.waiting)
        own = queue.waits_of(request.tenant, request.weight)
        if own < ahead:
            ahead = min(ahead, (own + size) * self._weights(request, own) / request.weight - size)
        cost = (queue.cost + request.cost(0, size)) / (queue.waiting + size)
        full, rest = divmod(ahead + size - 1, limit)
        before = full * pool.pace(replica, limit * cost)
        return pool.frees_in(now) + before + pool.seconds(replica, (rest + 1) * cost)

    def _weights(self, request: Request, own: int) -> float:
        """Of all shares that wait, with the request's."""
        return self._queue.weight if own else self._queue.weight + request.weight

    def _overloaded(self, now: float, message: str) -> Overloaded:
        queue, pool, capacity, wait = self._queue, self._pool, 0.0, 1.0
        if queue.waiting and (replica := pool.typical(now)) is not None:
            limit = self._pool.limit(replica)
            pace = pool.pace(replica, limit * queue.mean_cost())
            capacity = limit / max(pace, 1e-9)
            wait = ceil(queue.waiting / limit) * pace
        retry_after = self._come_back.seconds(now, wait, capacity)
        allowed = f"at most {self.max_queue_size} may wait; " if self.max_queue_size < inf else ""
        return Overloaded(message, f"{allowed}come back in {retry_after} s", retry_after)


class ComeBack:
    """Gives each refused caller a time of its own to come back, so that they do not all return at once.

    Times are handed out one after the other, at the pace of a fifth of the capacity, from when the queue will
    have emptied; a fixed answer would only move the burst.
    """

    __slots__ = ("_handed_out", "_last")

    def __init__(self) -> None:
        self._last = 0.0
        self._handed_out = 0

    def seconds(self, now: float, wait: float, capacity: float) -> int:
        """Whole seconds for `Retry-After`: `wait` until the queue is empty, `capacity` in items a second."""
        pace = 1 / (_SHARE * capacity) if capacity > 0 else 0.0
        self._last = min(max(now + wait, self._last) + pace, now + _LONGEST)
        self._handed_out += 1
        jitter = 1 + _JITTER * (2 * spread(self._handed_out) - 1)
        return max(1, min(int(_LONGEST), ceil((self._last - now) * jitter)))
