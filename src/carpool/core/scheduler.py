"""The scheduler: a state machine that decides who leaves with whom and when.

It is driven by five verbs, each of which is told the time and touches nothing outside: `submit`, `cancel`,
`take_batch`, `complete`, `next_wakeup`. Requests that end on the way (answered, failed, waited too long) are
handed out by `collect_ended`; every admitted request that is not cancelled is handed out exactly once. The
same class runs under asyncio in the server and in the library, and on a simulated clock in the tests and
benchmarks.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from carpool.core import selection
from carpool.core.admission import SAFETY, ComeBack, Limits
from carpool.core.arrivals import Arrivals
from carpool.core.batch import Batch, Part, Search
from carpool.core.device import Device
from carpool.core.isolation import Budget, Quarantine, halves
from carpool.core.policy import BatchPolicy, View, make_policy
from carpool.core.queue import Queue
from carpool.core.request import Request
from carpool.errors import BackendError, BatchFailed, BatchTooLarge, Overloaded, TimedOut

_RETURN_WINDOW = 0.5  # of a batch's time: who comes later than that after its end was not waiting for it
_EARLY = 0.001  # seconds: a batch leaves so much too early rather than wait for a timer that is no finer
_LATE = 1.1  # times the predicted time of the next batch must fit before a deadline when it leaves
_HEADROOM = 1.2  # over the batch size that the load needs, where an objective asks for small batches
_GROW_AFTER = 100  # batches without a complaint, until a size that was too large is approached by one
_SPARE_EXPIRIES = 64  # of requests that have left, before they are swept


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """A moment of the scheduler: items `waiting`, batches `in_flight`, and the `slots` for them."""

    waiting: int
    in_flight: int
    slots: int


class Scheduler:
    """Forms batches from requests. Times are floats in seconds on any clock that does not run backwards."""

    def __init__(self, policy: BatchPolicy, limits: Limits) -> None:
        self._policy = policy
        self._slots = limits.max_in_flight
        self._max_queue_size = inf if limits.max_queue_size is None else limits.max_queue_size
        self._queue_timeout = inf if limits.queue_timeout is None else limits.queue_timeout
        self._budget = inf if policy.max_batch_cost is None else policy.max_batch_cost
        self._device = Device()
        self._watches_device = policy.name == "adaptive" and limits.max_in_flight > 1
        self.curve = self._device.curve
        self.arrivals = Arrivals()
        self._departures = make_policy(policy, self.curve, self.arrivals)
        self._queue = Queue()
        self._in_flight: dict[int, Batch] = {}
        self._items_in_flight = 0
        self._batches = 0
        self._look_at = inf  # when the next batch may leave, as far as is known
        self._ended: list[Request] = []
        self._expiries: list[tuple[float, int, Request]] = []  # a heap, with entries of requests that have left
        self._sweep_at = _SPARE_EXPIRIES
        self._submitted = 0
        self._deadlines = 0  # requests with a deadline that are not answered yet
        self._carriers: dict[Hashable, Request] = {}
        self._retries: deque[tuple[list[Part], Search]] = deque()
        self._isolation_budget = Budget()
        self._quarantine = Quarantine()
        self._come_back = ComeBack()
        self._size_cap = policy.max_batch_size  # what the backend has shown to bear
        self._since_complaint = 0
        self._roomy_below = 0  # with fewer waiting, nobody waits for longer than the next
        self._roomy_wait = 0.0

    def __repr__(self) -> str:
        return f"<Scheduler: {len(self._queue)} waiting, {len(self._in_flight)} of {self._slots} slots busy>"

    # -- the five verbs ------------------------------------------------------------------------------------

    def submit(self, now: float, request: Request) -> None:
        """Admit a request to the queue.

        Raises `Overloaded` if the queue is full, or too long for the request's deadline, and the error of a
        payload that was found to be bad a moment ago.
        """
        size = len(request.items)
        if not size:
            raise ValueError("a request has one item at least")
        if request.key is not None and (known := self._quarantine.find(now, request.key)) is not None:
            raise known
        request.arrived = now
        request.expires = now + self._queue_timeout
        carrier = self._carriers.get(request.key) if request.key is not None else None
        if carrier is None:
            if len(self._queue) + size > self._max_queue_size:
                raise self._overloaded(now, f"the queue is full: {len(self._queue)} items wait")
            if request.timeout is not None:
                self._admit_by(now, request, request.timeout)
        elif request.timeout is not None:
            request.deadline = now + request.timeout
        request.expires = min(request.expires, request.deadline)
        self._look_at = now
        if request.deadline < inf:
            self._deadlines += 1
        if request.expires < inf:
            self._watch(request)
        if request.key is None:
            self._queue.push(request)
        else:
            self._board(carrier or self._new_carrier(now, request), request)
        self.arrivals.arrived(now, size, len(self._queue) + self._items_in_flight)

    def cancel(self, request: Request) -> bool:
        """Forget a request whose caller has gone: it leaves the queue at once, and its results go nowhere.

        Whether there was anything to forget.
        """
        if request.ended:
            return False
        request.ended = True
        self._let_go(request)
        return True

    def take_batch(self, now: float) -> Batch | None:
        """The batch that leaves now, if one does; ask again until none does."""
        self._look_at = inf
        if self._expiries and self._expiries[0][0] <= now:
            self._drop_expired(now)
        while len(self._in_flight) < self._slots:
            if self._retries:
                if (batch := self._take_retry(now)) is not None:
                    return batch
                continue
            oldest = self._queue.oldest()
            if oldest is None:
                return None
            view = self._view(oldest)
            if (opens := self._opens_at(view)) > now + _EARLY:
                self._look_at = opens
                return None
            departure = self._departures.departure(now, view)
            if departure.at > now:
                self._look_at = departure.at
                return None
            if parts := self._select(now):
                return self._launch(now, parts, departure.reason)
        return None

    def complete(self, now: float, batch: Batch, outcome: Sequence[Any] | BaseException) -> None:
        """Pair what the backend returned with who asked. An error, or a wrong count, is everyone's error.

        Except that a batch that failed on what was in it, or for its size, is run again in halves.
        """
        del self._in_flight[batch.number]
        self._items_in_flight -= len(batch)
        self._look_at = now
        self._roomy_below = 0
        if not isinstance(outcome, BaseException) and len(outcome) != len(batch):
            outcome = BackendError(
                f"the backend returned {len(outcome)} results for {len(batch)} inputs",
                "it must return exactly one result per input, in their order",
            )
        if isinstance(outcome, BaseException):
            self._failed(now, batch, outcome)
        else:
            self._succeeded(now, batch, outcome)
        self._device.ended(now)
        if self._device.serial:
            self._device.expect(now, self._in_flight.values())

    def next_wakeup(self) -> float | None:
        """When to call `take_batch` again if nothing else happens before; None if there is no need."""
        self._forget_left_expiries()
        wakeup = min(self._look_at, self._expiries[0][0] if self._expiries else inf)
        return None if wakeup == inf else wakeup

    # -- what they leave behind ----------------------------------------------------------------------------

    def collect_ended(self) -> list[Request]:
        """The requests that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def statistics(self) -> SchedulerStatistics:
        """A snapshot of the queue and the slots."""
        return SchedulerStatistics(len(self._queue), len(self._in_flight), self._slots)

    # -- forming a batch -----------------------------------------------------------------------------------

    @property
    def _width(self) -> int:
        """How many batches run at once: as many as there are slots, or one where they lead to one device."""
        return 1 if self._device.serial else self._slots

    def _last_expected(self) -> float:
        """When the batch that left last is expected back."""
        return self._in_flight[next(reversed(self._in_flight))].expected_at if self._in_flight else -inf

    def _opens_at(self, view: View) -> float:
        """When a serial device can do with another batch: one that leaves then finds it idle at last.

        A batch that cannot grow may go ahead by one batch time: it would only wait here.
        """
        if not self._device.serial:
            return -inf
        is_full = view.waiting >= view.limit or view.cost_is_full
        ahead = self.curve.predict(view.cost) if is_full else 0.0
        return self._last_expected() - self._device.overlap - ahead

    def _limit(self) -> int:
        """How many items a batch may have now: what was configured, what the backend bears, what is fast.

        Where an objective asks for smaller batches, it never takes the capacity that the load needs: a cap
        that shrinks as latency grows makes the queue longer, and the latency with it.
        """
        limit = self._size_cap
        objective, curve = self._policy.objective, self.curve
        if objective is None or not curve.ready or curve.per_cost <= 0:
            return limit
        slots, rate = self._width, self.arrivals.rate
        per_item = curve.per_cost * (self._queue.cost / len(self._queue) if self._queue.cost else 1.0)
        fast = (objective * slots / (slots + 1) - self._device.overlap - curve.fixed) / per_item
        spare = slots - rate * per_item
        needed = _HEADROOM * rate * curve.fixed / spare if spare > 0 else inf
        return max(1, int(min(limit, max(fast, needed))))

    def _seconds(self, cost: float) -> float:
        """How long a batch takes that would cost so much if a batch could; 0 as long as nothing is known."""
        return self.curve.predict(min(cost, self._budget))

    def _view(self, oldest: Request) -> View:
        waiting, limit = len(self._queue), self._limit()
        cost = self._queue.cost * min(1.0, limit / waiting)
        return View(
            waiting=waiting,
            limit=limit,
            cost=min(cost, self._budget),
            cost_is_full=cost >= self._budget,
            oldest=oldest.arrived,
            deadline=self._earliest_deadline() - self._device.overlap,
            here=waiting + self._items_in_flight,
            slots=self._width,
            ends=() if self._device.serial else sorted(b.expected_at for b in self._in_flight.values()),
        )

    def _earliest_deadline(self) -> float:
        """By when the first of those that wait must be answered, or may wait no longer."""
        self._forget_left_expiries()
        return self._expiries[0][0] if self._expiries else inf

    def _select(self, now: float) -> list[Part]:
        """Take the next batch's items out of the queue; nothing, if all that waited came too late."""
        limit = self._limit()
        ready_at = now
        if self._deadlines and self.curve.ready:
            size = min(limit, len(self._queue))
            cost = self._queue.cost * size / len(self._queue)
            ready_at = now + _LATE * (self._device.overlap + self._seconds(cost))

        def admit(request: Request) -> bool:
            return not self._drop_late(request, ready_at)

        if not self._policy.padded:
            return self._queue.take(limit, self._budget, admit if self._deadlines else None)
        candidates = [
            request
            for request in self._queue.candidates(selection.CANDIDATES_PER_ITEM * limit)
            if admit(request)
        ]
        if not candidates:
            return []
        chosen = selection.choose(now, candidates, limit, self._budget, self.curve)
        return [self._queue.take_chosen(request, stop) for request, stop in chosen]

    def _take_retry(self, now: float) -> Batch | None:
        parts, search = self._retries.popleft()
        parts = [part for part in parts if not part.request.ended]
        return self._launch(now, parts, "isolation", search) if parts else None

    def _launch(self, now: float, parts: list[Part], reason: str, search: Search | None = None) -> Batch:
        self._batches += 1
        batch = Batch(self._batches, parts, now, reason, search)
        batch.cost = self._price(parts)
        self._device.expect(self._last_expected(), (batch,))
        self._in_flight[batch.number] = batch
        self._items_in_flight += len(batch)
        return batch

    def _price(self, parts: Sequence[Part]) -> float:
        if not self._policy.padded:
            return sum(request.cost(start, stop) for request, start, stop in parts)
        widest = max(
            1.0 if request.costs is None else max(request.costs[start:stop]) for request, start, stop in parts
        )
        return widest * sum(stop - start for _, start, stop in parts)

    # -- what a batch has led to ---------------------------------------------------------------------------

    def _succeeded(self, now: float, batch: Batch, results: Sequence[Any]) -> None:
        if batch.search is None:
            if self._watches_device:
                if self._device.learn(now, batch):
                    self.curve = self._device.curve
                    self._departures = make_policy(self._policy, self.curve, self.arrivals)
            elif batch.number > 1:  # the first may be a cold start
                self.curve.learn(batch.cost, now - batch.taken_at)
            self._isolation_budget.earn()
        else:
            batch.search.successes += 1
            batch.search.largest = max(batch.search.largest, len(batch))
            self._size_cap = max(self._size_cap, len(batch))
        self.arrivals.batch_ended(now, len(batch), _RETURN_WINDOW * self.curve.predict(batch.cost))
        self._since_complaint += 1
        if self._size_cap < self._policy.max_batch_size and self._since_complaint >= _GROW_AFTER:
            self._size_cap += 1
            self._since_complaint = 0
        position = 0
        for request, start, stop in batch.parts:
            if not request.ended and request.receive(start, stop, results, position):
                self._hand_out(request)
            position += stop - start

    def _failed(self, now: float, batch: Batch, error: BaseException) -> None:
        """Run it again in halves if that can help; else it is the error of everyone in it."""
        search = batch.search or Search()
        if isinstance(error, BatchTooLarge):
            if len(batch) > 1:  # else it is the item that is too large
                self._size_cap = max(search.largest, min(self._size_cap, len(batch) // 2))
                self._since_complaint = 0
        elif batch.search is not None:
            search.failures += 1
        if self._may_split(batch, error, search):
            self._retries.extend((half, search) for half in halves(batch))
            return
        if len(batch) == 1 and isinstance(error, BatchFailed) and search.successes:
            (part,) = batch.parts
            if part.request.key is not None:
                self._quarantine.add(now, part.request.key, error)
        for request, _, _ in batch.parts:
            if not request.ended:
                request.fail(error)
                self._hand_out(request)

    def _may_split(self, batch: Batch, error: BaseException, search: Search) -> bool:
        if len(batch) == 1 or search.is_outage:
            return False
        if isinstance(error, BatchTooLarge):
            return True
        isolate = self._policy.isolate and isinstance(error, BatchFailed)
        return isolate and self._isolation_budget.spend(2)

    # -- how a request ends --------------------------------------------------------------------------------

    def _hand_out(self, request: Request) -> None:
        """A request has ended: for its caller, or for all who ride with it."""
        self._let_go(request)
        if request.riders is None:
            self._ended.append(request)
            return
        for rider in request.riders:
            rider.results, rider.error, rider.ended = list(request.results), request.error, True
            self._let_go(rider, still_riding=False)
            self._ended.append(rider)

    def _let_go(self, request: Request, still_riding: bool = True) -> None:
        """Give back whatever an ended request holds."""
        if request.deadline < inf:
            self._deadlines -= 1
        if request.riders is not None and self._carriers.get(request.key) is request:
            del self._carriers[request.key]
        carrier = request.carrier
        if carrier is None:
            if request.taken < len(request.items):
                self._queue.withdraw(request)
        elif still_riding and carrier.riders is not None:
            carrier.riders.remove(request)
            if not carrier.riders:
                carrier.ended = True
                self._let_go(carrier)

    def _new_carrier(self, now: float, request: Request) -> Request:
        """What is computed in the place of a request that others may share; it waits for as long as they do."""
        carrier = Request(
            request.items, costs=request.costs, tenant=request.tenant, weight=request.weight, key=request.key
        )
        carrier.arrived = now
        carrier.riders = []
        self._carriers[request.key] = carrier
        self._queue.push(carrier)
        return carrier

    def _board(self, carrier: Request, request: Request) -> None:
        assert carrier.riders is not None
        carrier.riders.append(request)
        request.carrier = carrier

    # -- deadlines and admission ---------------------------------------------------------------------------

    def _admit_by(self, now: float, request: Request, timeout: float) -> None:
        """Give a request its deadline, or refuse it if it would not make it.

        What was predicted for one request holds, with two batch times to spare, for those that come after it
        until a batch is back or another batch's worth waits; most deadlines are far beyond even that.
        """
        roomy = len(self._queue) < self._roomy_below and SAFETY * self._roomy_wait <= timeout
        if self.curve.ready and not (roomy and len(request.items) == 1):
            wait = self._time_to_answer(now, request)
            if SAFETY * wait > timeout:
                raise self._overloaded(now, f"the queue is too long for a deadline of {timeout * 1000:.0f} ms")
            limit = self._limit()
            waiting = len(self._queue) + 1
            full = limit * (self._queue.cost + request.cost(0, 1)) / waiting
            self._roomy_below = waiting + limit
            self._roomy_wait = wait + 2 * self._seconds(full)
        request.deadline = now + timeout

    def _time_to_answer(self, now: float, request: Request) -> float:
        """How long until a request that arrives now is answered, as predicted."""
        limit = self._limit()
        waiting = len(self._queue) + len(request.items)
        cost = (self._queue.cost + request.cost(0, len(request.items))) / waiting
        free_in = 0.0
        if self._device.serial:
            free_in = max(self._device.overlap, self._last_expected() - now)
        elif len(self._in_flight) >= self._slots:
            free_in = max(0.0, min(batch.expected_at for batch in self._in_flight.values()) - now)
        full, rest = divmod(waiting - 1, limit)
        before = full * self._seconds(limit * cost) / self._width
        return free_in + before + self._seconds((rest + 1) * cost)

    def _overloaded(self, now: float, message: str) -> Overloaded:
        limit, capacity, wait = self._limit(), 0.0, 1.0
        if self.curve.ready and len(self._queue):
            seconds = self._seconds(limit * self._queue.cost / len(self._queue))
            capacity = self._width * limit / max(seconds, 1e-9)
            wait = ceil(len(self._queue) / limit) * seconds / self._width
        retry_after = self._come_back.seconds(now, wait, capacity)
        allowed = f"at most {self._max_queue_size} may wait; " if self._max_queue_size < inf else ""
        return Overloaded(message, f"{allowed}come back in {retry_after} s", retry_after)

    def _watch(self, request: Request) -> None:
        """Remember when a request expires. Entries of those that have left are swept now and then."""
        self._submitted += 1
        heapq.heappush(self._expiries, (request.expires, self._submitted, request))
        if len(self._expiries) > self._sweep_at:
            self._expiries = [entry for entry in self._expiries if not _has_left(entry[2])]
            heapq.heapify(self._expiries)
            self._sweep_at = _SPARE_EXPIRIES + 2 * len(self._expiries)

    def _forget_left_expiries(self) -> None:
        while self._expiries and _has_left(self._expiries[0][2]):
            heapq.heappop(self._expiries)

    def _drop_expired(self, now: float) -> None:
        """End what has waited for too long."""
        self._forget_left_expiries()
        while self._expiries and self._expiries[0][0] <= now:
            request = heapq.heappop(self._expiries)[2]
            waited = (now - request.arrived) * 1000
            request.fail(TimedOut(f"timed out after waiting {waited:.0f} ms in the queue", "it was not run"))
            self._hand_out(request)
            self._forget_left_expiries()

    def _drop_late(self, request: Request, ready_at: float) -> bool:
        """End a request that would be answered too late; whether nobody is left who waits for it."""
        if request.riders is None:
            if request.deadline < ready_at:
                request.fail(TimedOut("it could not be answered by its deadline", "it was not run"))
                self._hand_out(request)
            return request.ended
        for rider in list(request.riders):
            self._drop_late(rider, ready_at)
        return request.ended


def _has_left(request: Request) -> bool:
    """Whether a request no longer waits in the queue."""
    waits = request.carrier or request
    return request.ended or waits.taken == len(waits.items)
