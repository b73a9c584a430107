"""The scheduler: a state machine that decides who leaves with whom and when.

It is driven by five verbs, each of which is told the time and touches nothing outside: `submit`, `cancel`,
`take_batch`, `complete`, `next_wakeup`. Requests that end on the way (answered, failed, waited too long) are
handed out by `collect_ended`; every admitted request that is not cancelled is handed out exactly once. The
same class runs under asyncio in the server and in the library, and on a simulated clock in the tests and
benchmarks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, inf, nextafter
from typing import Any

from carpool.core import selection
from carpool.core.admission import Admission
from carpool.core.arrivals import Arrivals
from carpool.core.batch import Batch, Part, Search
from carpool.core.deadlines import Deadlines
from carpool.core.isolation import Budget, Quarantine
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy, View, make_policy
from carpool.core.pool import Pool
from carpool.core.queue import Lane, Queue
from carpool.core.replica import Capacity, Replica
from carpool.core.request import Request
from carpool.core.reruns import Rerun, Reruns, live
from carpool.errors import (
    Abandoned,
    BackendError,
    BadInput,
    BatchFailed,
    BatchRefused,
    BatchTooLarge,
    CallerError,
    Crashed,
    Hung,
    Overloaded,
    ShuttingDown,
    TimedOut,
    Unavailable,
    Unreachable,
)

_RETURN_WINDOW = 0.5  # of a batch's time: who comes later than that after its end was not waiting for it
_EARLY = 0.001  # seconds: a batch leaves so much too early rather than wait for a timer that is no finer
_LATE = 1.1  # times the predicted time of the next batch must fit before a deadline when it leaves
_KILLS = 2  # worker processes that ended over a batch: then it is what is in the batch
_URGENT = 0.5  # of a batch may go to the most urgent, past the order of the queue


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """A moment of the scheduler: items `waiting`, batches `in_flight`, and the `slots` for them."""

    waiting: int
    in_flight: int
    slots: int


@dataclass(frozen=True, slots=True)
class ReplicaStatistics:
    """A moment of one replica. It `is_up` where it can be reached and most of its last batches came back."""

    number: int
    in_flight: int
    slots: int
    is_up: bool


class Scheduler:
    """Forms batches from requests. Times are floats in seconds on any clock that does not run backwards."""

    def __init__(
        self, policy: BatchPolicy, limits: Limits, capacities: Sequence[Capacity] = (Capacity(),)
    ) -> None:
        self._policy = policy
        self._queue_timeout = inf if limits.queue_timeout is None else limits.queue_timeout
        self._queue = Queue()
        self._pool = Pool(policy, limits, capacities, self._load)
        self.arrivals = Arrivals()
        self._admission = Admission(limits, self._queue, self._pool)
        self._departures = make_policy(policy, self.arrivals)
        self._items_in_flight = 0
        self._batches = 0
        self._look_at = inf  # when the next batch may leave, as far as is known
        self._ended: list[Request] = []
        # Of batches that came back well, and when and where: still to be learned from.
        self._lessons: list[tuple[float, Replica, Batch]] = []
        self._expiries = Deadlines()
        self._has_deadlines = False  # since the queue was last empty
        self._leaves_at = inf  # when the first has waited for too long; no later, perhaps earlier
        self._leads: dict[Hashable, Request] = {}  # what is computed, by what others could share it
        self._reruns = Reruns()
        self._isolation_budget = Budget()
        self._quarantine = Quarantine()

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<Scheduler: {now.waiting} waiting, {now.in_flight} of {now.slots} slots busy>"

    # -- the five verbs ------------------------------------------------------------------------------------

    def submit(self, now: float, request: Request) -> None:
        """Admit a request to the queue.

        Raises `Overloaded` if the queue is full, or too long for the request's deadline, `Unavailable` if
        there has been no replica for a while, and the error of a payload that was found to be bad a moment
        ago.
        """
        if self._lessons:
            self._learn()
        queue, key, timeout, lead = self._queue, request.key, request.timeout, None
        size = len(request.items)
        if not size:
            raise ValueError("a request has one item at least")
        if self._pool.down_since < inf and self._pool.is_down(now):
            raise self._no_replica(now)
        if self._quarantine.known and (known := self._quarantine.find(now, _content(request))) is not None:
            raise known
        if key is not None:
            lead = self._leads.get(key)
        if lead is None:
            if queue.waiting + size > self._admission.max_queue_size:
                self._admission.refuse_unless_entitled(now, request)
            if timeout is not None:
                self._admission.refuse_if_late(now, request, timeout)
        request.arrived = now
        if timeout is not None:
            request.deadline = request.expires = now + timeout
            self._has_deadlines = True
        if lead is not None:
            request.expires = min(request.expires, now + self._queue_timeout)
            self._board(lead, request)
        else:
            if not queue.waiting:
                self._leaves_at = now + self._queue_timeout
            queue.push(request)
            if key is not None:
                self._leads[key] = request
        if request.expires < inf:
            self._expiries.watch(request)
        self._look_at = now
        self.arrivals.arrived(now, size, queue.waiting + self._items_in_flight)

    def cancel(self, request: Request) -> bool:
        """Forget a request whose caller has gone: it leaves the queue at once, and its results go nowhere.

        Whether there was anything to forget.
        """
        if request.ended or request.is_orphan:
            return False
        self._abandon(request)
        return True

    def take_batch(self, now: float) -> Batch | None:
        """The batch that leaves now, if one does; ask again until none does."""
        if self._lessons:
            self._learn()
        self._look_at = inf
        if self._expiries.earliest <= now or self._leaves_at <= now:
            self._drop_expired(now)
        if self._policy.hedge and (batch := self._take_hedge(now)) is not None:
            return batch
        while self._queue.waiting or self._reruns.waiting:
            if self._reruns.waiting and (batch := self._take_rerun(now)) is not None:
                return batch
            replica = self._pool.free(now, self._queue.waiting, self._queue.cost)
            if replica is None:
                if self._pool.is_down(now):
                    self._give_up(now)
                else:
                    self._look_again(self._pool.look_again_at)
                return None
            lane = self._queue.next_lane()
            if lane is None:
                return None
            limit, budget = self._pool.limit(replica), self._pool.budget(replica)
            cost = lane.cost if lane.waiting <= limit else lane.cost * limit / lane.waiting
            is_full = lane.waiting >= limit or cost >= budget
            cost = min(cost, budget)
            if not replica.is_free(now) and not (is_full and replica.gains_ahead(cost)):
                return None
            if replica.device.serial and (opens := replica.opens_at(cost if is_full else None)) > now + _EARLY:
                self._look_again(opens)
                return None
            reason = "full"
            if not is_full:
                departure = self._departures.departure(now, self._view(replica, lane, cost))
                if departure.at > now:
                    self._look_again(departure.at)
                    return None
                reason = departure.reason
            if parts := self._select(now, replica, lane, limit, budget, cost):
                return self._launch(now, replica, parts, reason)
        return None

    def complete(self, now: float, batch: Batch, outcome: Sequence[Any] | BaseException) -> None:
        """Pair what the backend returned with who asked. An error, or a wrong count, is everyone's error.

        Except that a batch that failed on what was in it, or for its size, is run again in halves, and one
        that was lost is run again elsewhere, or in a moment. What a good batch teaches (its time, that its
        replica is well) is learned when the next verb asks for it, so that its callers need not wait for that.
        """
        replica = self._pool.replica(batch.replica)
        replica.release(batch)
        self._items_in_flight -= len(batch)
        self._look_at = now
        self._admission.batch_ended()
        twin, batch.twin = batch.twin, None
        if twin is not None:
            twin.twin = None
            twin.is_settled = not isinstance(outcome, BaseException)
        if not isinstance(outcome, BaseException) and len(outcome) != len(batch):
            outcome = BackendError(
                f"the backend returned {len(outcome)} results for {len(batch)} inputs",
                "it must return exactly one result per input, in their order",
            )
        self._pool.forget_if_gone(replica)
        is_ignored = batch.is_settled or (twin is not None and not twin.is_settled)
        if not (is_ignored or isinstance(outcome, BaseException)):
            self._pair(batch, outcome)
            self._lessons.append((now, replica, batch))
            return
        self._learn()
        if is_ignored:
            self._ignored(now, replica, batch, outcome)
        elif isinstance(outcome, BaseException):
            self._failed(now, replica, batch, outcome)
        replica.ended(now)

    def next_wakeup(self) -> float | None:
        """When to call `take_batch` again if nothing else happens before; None if there is no need."""
        wakeup = self._look_at
        if self._expiries.earliest < wakeup:
            wakeup = min(wakeup, self._expiries.next())
        if self._leaves_at < wakeup and self._queue.waiting:
            wakeup = self._leaves_at
        return None if wakeup == inf else wakeup

    # -- the pool ------------------------------------------------------------------------------------------

    def add_replica(self, capacity: Capacity) -> int:
        """Another place where batches run; the number by which it goes from now on."""
        return self._pool.add(capacity)

    def set_capacity(self, number: int, capacity: Capacity) -> None:
        """A replica has said what it takes; its batches in flight are not touched."""
        self._pool.replica(number).set_capacity(capacity)

    def set_available(self, now: float, number: int, is_available: bool) -> None:
        """Whether a replica can be reached at all, as the driver knows it."""
        self._pool.set_available(now, number, is_available)
        self._look_at = now

    def remove_replica(self, number: int) -> None:
        """Send nothing to a replica any more; it is to be told of the end of what is in flight there."""
        self._pool.remove(number)

    # -- what they leave behind ----------------------------------------------------------------------------

    def collect_ended(self) -> list[Request]:
        """The requests that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._queue.waiting

    def statistics(self) -> SchedulerStatistics:
        """A snapshot of the queue and the slots."""
        slots = sum(replica.slots for replica in self._pool.replicas)
        in_flight = sum(len(replica.in_flight) for replica in self._pool.replicas)
        return SchedulerStatistics(self._queue.waiting, in_flight, slots)

    def replicas(self, now: float) -> list[ReplicaStatistics]:
        """A snapshot of each replica, those included that finish what is in flight there before they go."""
        return [
            ReplicaStatistics(
                replica.number,
                len(replica.in_flight),
                replica.slots,
                replica.breaker.is_closed and replica.is_up(now),
            )
            for replica in self._pool.replicas
        ]

    def _give_up(self, now: float) -> None:
        """Everybody who waits is told that nothing can serve."""
        parts = self._reruns.drain()
        while (lane := self._queue.next_lane()) is not None:
            parts += self._queue.take(lane, lane.waiting)
        self._fail_all(parts, self._no_replica(now))

    def _no_replica(self, now: float) -> Unavailable:
        pause = ceil(self._pool.opens_at() - now) if self._pool.opens_at() > now else 1
        why = "no replica can be reached" if pause <= 1 else f"all have asked for a pause, of {pause} s still"
        return Unavailable("nothing can serve this now", f"{why}; it was not run", pause)

    def _fail_all(self, parts: Sequence[Part], error: BaseException) -> None:
        for request, _, _ in parts:
            if not request.ended:
                request.fail(error)
                self._hand_out(request)

    def _look_again(self, at: float) -> None:
        if at < self._look_at:
            self._look_at = at

    # -- forming a batch -----------------------------------------------------------------------------------

    def _load(self) -> tuple[float, float]:
        """What an item that waits costs, and how many arrive in a second."""
        return self._queue.mean_cost(), self.arrivals.rate

    def _view(self, replica: Replica, lane: Lane, cost: float) -> View:
        oldest = lane.oldest().arrived
        return View(
            waiting=lane.waiting,
            cost=cost,
            oldest=oldest,
            deadline=min(self._expiries.next(), oldest + self._queue_timeout) - replica.device.overlap,
            here=self._queue.waiting + self._items_in_flight,
            slots=self._pool.width(),
            ends=self._pool.ends(replica),
            curve=replica.curve,
        )

    def _select(
        self, now: float, replica: Replica, lane: Lane, limit: int, budget: float, cost: float
    ) -> list[Part]:
        """Take the next batch's items out of the queue; nothing, if all that waited came too late."""
        ready_at = now
        if self._has_deadlines and replica.curve.ready:
            ready_at = now + _LATE * (replica.frees_in(now) + replica.curve.predict(cost))

        def admit(request: Request) -> bool:
            return not self._drop_late(request, ready_at)

        if self._policy.padded:
            count = selection.CANDIDATES_PER_ITEM * limit
            candidates = [request for request in lane.candidates(count) if admit(request)]
            if not candidates:
                return []
            chosen = selection.choose(now, candidates, limit, budget, replica.curve)
            return [self._queue.take_chosen(request, stop) for request, stop in chosen]
        check = admit if self._has_deadlines else None
        if lane.waiting <= limit:
            return self._queue.take(lane, limit, budget, check)
        parts = self._take_urgent(now, lane, limit, budget, 2 * ready_at - now)
        left = limit - sum(stop - start for _, start, stop in parts)
        left_budget = budget - sum(request.cost(start, stop) for request, start, stop in parts)
        return self._queue.take(lane, left, left_budget, check, parts)

    def _take_urgent(self, now: float, lane: Lane, limit: int, budget: float, next_ready: float) -> list[Part]:
        """Who has waited for too long for its class, and whose deadline leaves no time for the batch after.

        They go past the order of the queue, with a part of the batch, at the cost of their own share.
        """
        room = int(limit * _URGENT)
        urgent = lane.overdue(now, room)
        watched: list[Request] = []
        while self._has_deadlines and len(urgent) < room and (request := self._expiries.pop(next_ready)):
            watched.append(request)
            urgent.append(request.carrier or request)
        parts: list[Part] = []
        for request in urgent:
            stop = min(len(request.items), request.taken + room)
            cost = request.cost(request.taken, stop)
            if (
                stop > request.taken
                and cost <= budget
                and request.deadline > now
                and request.group == lane.group
            ):
                room -= stop - request.taken
                budget -= cost
                parts.append(self._queue.take_chosen(request, stop))
        for request in watched:
            waits = request.carrier or request
            if waits.taken < len(waits.items):
                self._expiries.watch(request)
        return parts

    def _take_rerun(self, now: float) -> Batch | None:
        """A batch to be run again, if one is due and there is a place for it."""
        while (rerun := self._reruns.pop(now, partial(self._place_for, now))) is not None:
            for request, _, _ in rerun.parts:
                self._drop_late(request, now)
            if parts := live(rerun.parts):
                replica = self._pool.free_for_rerun(now, rerun.avoid)
                assert replica is not None  # since there was room
                reason = "isolation" if rerun.tries == 1 else "retry"
                return self._launch(now, replica, parts, reason, rerun.search, rerun.tries)
        if (due := self._reruns.next()) > now:
            self._look_again(due)
        for request in self._reruns.requests():  # which are in no queue that would watch their deadlines
            self._drop_late(request, nextafter(now, inf))
            for waits in (request, *(request.riders or ())):
                if waits.deadline > now:  # else its caller knows, and it is run for the riders
                    self._look_again(waits.deadline)
        return None

    def _place_for(self, now: float, rerun: Rerun) -> int:
        """How many items of a rerun may leave now."""
        replica = self._pool.free_for_rerun(now, rerun.avoid)
        if replica is None:
            return 0
        # The halves of a search are as large as they must be.
        most = self._policy.max_batch_size
        return most if rerun.search is not None else replica.limit(most)

    def _take_hedge(self, now: float) -> Batch | None:
        """A batch that is unusually late, to be run elsewhere as well."""
        for late_at, batch in self._pool.late():
            if late_at > now:
                self._look_again(late_at)
                continue
            replica = self._pool.free_for_rerun(now, batch.replica)
            parts = live(batch.parts)
            fits = replica is not None and len(batch) <= replica.limit(self._policy.max_batch_size)
            if replica is None or replica.number == batch.replica or not fits or not parts:
                continue
            if self._reruns.may_add():
                twin = self._launch(now, replica, batch.parts, "hedge", batch.search, batch.tries)
                batch.twin, twin.twin = twin, batch
                return twin
        return None

    def _launch(
        self,
        now: float,
        replica: Replica,
        parts: list[Part],
        reason: str,
        search: Search | None = None,
        tries: int = 1,
    ) -> Batch:
        self._batches += 1
        batch = Batch(self._batches, parts, now, reason, search, replica.number, tries)
        batch.cost = self._price(parts)
        replica.launch(batch)
        self._items_in_flight += len(batch)
        if not self._queue.waiting:
            self._has_deadlines = False
        return batch

    def _price(self, parts: Sequence[Part]) -> float:
        if not self._policy.padded:
            cost = 0.0
            for request, start, stop in parts:
                costs = request.costs
                if costs is None:
                    cost += stop - start
                else:
                    cost += costs[start] if stop - start == 1 else sum(costs[start:stop])
            return cost
        widest = max(
            1.0 if request.costs is None else max(request.costs[start:stop]) for request, start, stop in parts
        )
        return widest * sum(stop - start for _, start, stop in parts)

    # -- what a batch has led to ---------------------------------------------------------------------------

    def _learn(self) -> None:
        lessons, self._lessons = self._lessons, []
        for ended_at, replica, batch in lessons:
            replica.succeeded(ended_at, batch)
            self._pool.has_answered()
            self._isolation_budget.earn(len(batch))
            if batch.search is None:
                self._reruns.earn()
            else:
                batch.search.successes += 1
                batch.search.largest = max(batch.search.largest, len(batch))
            window = _RETURN_WINDOW * replica.curve.predict(batch.cost)
            self.arrivals.batch_ended(ended_at, len(batch), window)
            replica.ended(ended_at)

    def _pair(self, batch: Batch, results: Sequence[Any]) -> None:
        leads, ended, position = self._leads, self._ended, 0
        for request, start, stop in batch.parts:
            if len(request.items) == 1 and not (request.ended or request.riders):
                # One item that nobody shares: what nearly all are, and what `receive` and `_hand_out` would do.
                result = results[position]
                request.left = batch.taken_at
                request.ended = True
                if isinstance(result, BaseException):
                    request.fail(result)
                else:
                    request.results = [result]
                if (key := request.key) is not None and leads.get(key) is request:
                    del leads[key]
                ended.append(request)
            elif not request.ended:
                request.left = batch.taken_at
                if request.receive(start, stop, results, position):
                    self._hand_out(request)
            position += stop - start

    def _ignored(
        self, now: float, replica: Replica, batch: Batch, outcome: Sequence[Any] | BaseException
    ) -> None:
        """Its twin has answered, or will; only the replica's books are kept."""
        if isinstance(outcome, BaseException):
            self._note_health(now, replica, outcome, batch.search or Search())
        else:
            replica.succeeded(now, batch)

    def _failed(self, now: float, replica: Replica, batch: Batch, error: BaseException) -> None:
        """Run it again, in halves or elsewhere, if that can help; else it is the error of everyone in it."""
        search = batch.search or Search()
        if isinstance(error, BatchTooLarge):
            if len(batch) > 1:
                replica.complained(batch, search)
            else:
                self._pool.excused(search)
        elif batch.search is not None:
            search.failed(hung=isinstance(error, Hung))
        self._note_health(now, replica, error, search)
        kills = isinstance(error, Crashed) and batch.tries >= _KILLS
        if isinstance(error, Hung) and self._policy.isolate and (len(batch) > 1 or batch.search is not None):
            kills = True  # each try costs the whole time that a batch may take: in pieces is another one
        is_lost = isinstance(error, _LOST) and not (kills or isinstance(error, ShuttingDown))
        if is_lost and not self._is_put_off(now, error) and self._reruns.again(now, batch):
            return
        if self._may_split(batch, error, search, kills):
            if isinstance(error, Hung):
                self._reruns.one_by_one(now, batch, search)
            else:
                self._reruns.in_pieces(now, batch, search)
            return
        if len(batch) == 1:
            is_deadly = kills and not search.is_doubtful
            if is_deadly:
                error = _deadly(error)
            elif isinstance(error, BatchRefused):
                error = BadInput("the input is refused", str(error))
            ((request, _, _),) = batch.parts
            is_to_blame = isinstance(error, _OF_ITS_CONTENTS) and search.successes and request.key is not None
            if is_to_blame or is_deadly:
                self._quarantine.add(now, _content(request), error)
        self._fail_all(batch.parts, error)
        if search.is_outage:
            self._fail_all(self._reruns.abandon(search), error)

    def _note_health(self, now: float, replica: Replica, error: BaseException, search: Search) -> None:
        """What an error says of the replica: nothing, where it was about what it was sent."""
        if isinstance(error, Overloaded | Unavailable) and error.retry_after:
            replica.breaker.pause(now + error.retry_after)
        says_nothing = isinstance(error, _SAYS_NOTHING)
        if says_nothing and (isinstance(error, BatchRefused) or not search.is_outage):
            replica.breaker.undecided()
        else:
            replica.breaker.failed(now)

    def _is_put_off(self, now: float, error: BaseException) -> bool:
        """Whether it was not run by who asked for a pause, too long to wait for, with nobody else up."""
        asked = isinstance(error, Overloaded | Unavailable) and error.retry_after
        return bool(asked) and self._pool.is_down(now)

    def _may_split(self, batch: Batch, error: BaseException, search: Search, kills: bool) -> bool:
        if len(batch) == 1 or search.is_outage:
            return False
        if isinstance(error, BatchTooLarge):
            return True
        isolate = self._policy.isolate and (kills or isinstance(error, BatchFailed))
        return isolate and self._isolation_budget.spend(2)

    # -- how a request ends --------------------------------------------------------------------------------

    def _hand_out(self, request: Request) -> None:
        """A request has ended: for its caller, and for all who ride with it."""
        if not request.is_orphan:
            self._ended.append(request)
        if request.key is not None or request.taken < len(request.items):
            self._leave(request)
        # Let go of each other, or they would be freed by a search for garbage only.
        riders, request.riders = request.riders, None
        for rider in riders or ():
            rider.carrier = None
            rider.results, rider.ended = list(request.results), True
            rider.left = request.left
            rider.error = request.error if request.has_failed else None
            self._ended.append(rider)

    def _tell(self, request: Request, error: BaseException) -> None:
        """Its caller gets an error; what is computed for others goes on."""
        request.error = error
        self._ended.append(request)
        self._abandon(request)

    def _abandon(self, request: Request) -> None:
        """Its caller does not wait any more."""
        if request.riders:
            request.is_orphan = True
        else:
            request.ended = True
            self._leave(request)

    def _leave(self, request: Request) -> None:
        """Nothing is to be computed for a request any more."""
        lead = request.carrier
        if lead is None:
            self._queue.withdraw(request)
            if request.key is not None and self._leads.get(request.key) is request:
                del self._leads[request.key]
        elif lead.riders is not None and not lead.ended:
            lead.riders.remove(request)
            if lead.is_orphan and not lead.riders:
                lead.ended = True
                self._leave(lead)

    def _board(self, lead: Request, request: Request) -> None:
        """Share what is computed for another request."""
        if lead.riders is None:
            lead.riders = []
        lead.riders.append(request)
        request.carrier = lead

    # -- deadlines -----------------------------------------------------------------------------------------

    def _drop_expired(self, now: float) -> None:
        """End what has waited for too long."""
        overstayed = self._queue.overstayed(now, self._queue_timeout)
        self._leaves_at = self._queue.leaves_at(now, self._queue_timeout)
        while (request := self._expiries.pop(now)) is not None:
            overstayed.append(request)
        for request in overstayed:
            if not (request.ended or request.is_orphan):
                waited = (now - request.arrived) * 1000
                run = "it was not run" if not request.taken else "it was run in part"
                self._tell(request, TimedOut(f"timed out after waiting {waited:.0f} ms in the queue", run))

    def _drop_late(self, request: Request, ready_at: float) -> bool:
        """Tell who would be answered too late; whether nobody is left who waits for it."""
        if request.deadline < ready_at and not (request.ended or request.is_orphan):
            self._tell(request, TimedOut("it could not be answered by its deadline", "it was not run"))
        for rider in list(request.riders or ()):
            self._drop_late(rider, ready_at)
        return request.ended


# What a replica did not like in a batch, had no time for, or was not asked any more.
_SAYS_NOTHING = (BatchFailed, BatchTooLarge, CallerError, Overloaded, Abandoned)
_OF_ITS_CONTENTS = (BadInput, BatchFailed, BatchTooLarge)
_LOST = (Unreachable, Unavailable, Overloaded)  # what another replica, or a later moment, may make good


def _deadly(error: BaseException) -> BatchFailed:
    """The error of an item that worker processes die of, also when it is alone."""
    return BatchFailed(
        "this input kills the worker process", f"more than once, the last time alone: {error.args[0]}"
    )


def _content(request: Request) -> Hashable:
    """What is the same for requests for the same; `None` where that cannot be told."""
    if request.key is not None:
        return request.key
    try:
        return hash((request.group, *request.items))  # and not the items, which may be megabytes of a body
    except TypeError:
        return None
