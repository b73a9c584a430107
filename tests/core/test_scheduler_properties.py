"""What holds of the scheduler whatever happens, in whatever order."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from carpool.core.batch import Batch
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.replica import Capacity
from carpool.core.request import Request
from carpool.core.scheduler import Scheduler
from carpool.errors import (
    BackendError,
    BatchFailed,
    BatchTooLarge,
    Overloaded,
    ShuttingDown,
    TimedOut,
    TooLarge,
    Unavailable,
    Unreachable,
)

QUEUE_TIMEOUT = 5.0
MAX_WAIT = 1.0
POISON = 7  # of so many items one makes any batch fail that holds it


def answer(item: int) -> str:
    return f"{item}!"


def is_poison(item: int) -> bool:
    return item % POISON == POISON - 1


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, batches leave, fail and succeed, callers go, time passes; in any order."""

    @initialize(
        name=st.sampled_from(["adaptive", "timeout"]),
        size=st.integers(1, 9),
        slots=st.integers(1, 3),
        queue=st.none() | st.integers(1, 30),
        queue_timeout=st.sampled_from([None, QUEUE_TIMEOUT]),
        budget=st.none() | st.integers(1, 12),
        padded=st.booleans(),
        objective=st.none() | st.sampled_from([0.05, 2.0]),
        isolate=st.booleans(),
        bears=st.integers(1, 9),
        replicas=st.integers(1, 3),
        hedge=st.booleans(),
    )
    def build(
        self,
        name: Any,
        size: int,
        slots: int,
        queue: int | None,
        queue_timeout: float | None,
        budget: int | None,
        padded: bool,
        objective: float | None,
        isolate: bool,
        bears: int,
        replicas: int,
        hedge: bool,
    ) -> None:
        self.policy = BatchPolicy(
            name,
            size,
            MAX_WAIT,
            max_batch_cost=budget,
            padded=padded,
            objective=objective,
            isolate=isolate,
            hedge=hedge,
        )
        self.limits = Limits(slots, queue, queue_timeout)
        # The first takes anything, the others less and less.
        self.capacities = [Capacity(), Capacity(1, 5, 9.0, 7), Capacity(1, 2, ahead=1)][:replicas]
        self.scheduler = Scheduler(self.policy, self.limits, self.capacities)
        self.bears = bears  # items that the backend can take at once
        self.now = 0.0
        self.items = 0
        self.open: list[Request] = []
        self.in_flight: list[Batch] = []
        self.down = False  # whether a replica may have been away: by its own word, or by what it lost

    @rule(
        costs=st.none() | st.lists(st.integers(0, 6), min_size=1, max_size=12),
        size=st.integers(1, 12),
        tenant=st.sampled_from("ab"),
        weight=st.sampled_from([1.0, 4.0]),
        timeout=st.none() | st.sampled_from([0.0, 0.1, 1.5, 4.0]),
        key=st.none() | st.none() | st.integers(0, 3),
        group=st.sampled_from([None, None, "group"]),
    )
    def submit(
        self,
        costs: list[int] | None,
        size: int,
        tenant: str,
        weight: float,
        timeout: float | None,
        key: int | None,
        group: str | None,
    ) -> None:
        if key is not None:  # what has the same key is the same
            items, costs = range(key, key + 2 * key + 1), None
        else:
            size = size if costs is None else len(costs)
            items = range(self.items, self.items + size)
            self.items += size
        request = Request(
            items, costs=costs, tenant=tenant, weight=weight, timeout=timeout, key=key, group=group
        )
        waiting = self.scheduler.statistics().waiting
        try:
            self.scheduler.submit(self.now, request)
        except Overloaded as refusal:
            told = refusal.retry_after
            assert 1 <= told <= 30
            assert timeout is not None or self.limits.max_queue_size is not None
            assert self.scheduler.statistics().waiting == waiting
        except TooLarge:
            assert len(items) > (self.limits.max_queue_size or len(items))
        except Unavailable:
            assert self.down
        except BatchFailed:  # in quarantine
            assert any(map(is_poison, items))
            assert self.policy.isolate
        else:
            self.open.append(request)

    @rule()
    def take(self) -> None:
        batch = self.scheduler.take_batch(self.now)
        if batch is not None:
            self.check_batch(batch)
            self.in_flight.append(batch)
        else:
            wakeup = self.scheduler.next_wakeup()
            assert wakeup is None or wakeup > self.now  # else the driver would spin
            if not self.in_flight and not self.down:
                assert all(request.arrived + MAX_WAIT > self.now for request in self.waiting())
        self.check_ended()

    @precondition(lambda self: self.in_flight)
    @rule(
        data=st.data(),
        fate=st.sampled_from(
            ["run"] * 6 + ["short", "item", BackendError("no"), BatchFailed("outage"), Unreachable("gone")]
        ),
        seconds=st.sampled_from([0.0, 0.01, 0.02, 0.5]),
    )
    def complete(self, data: st.DataObject, fate: Any, seconds: float) -> None:
        batch = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        outcome = self.run_backend(batch)
        if isinstance(fate, BackendError):
            outcome = fate
            self.down = True
        elif isinstance(outcome, list) and fate == "short":
            outcome.pop()
        elif isinstance(outcome, list) and fate == "item":
            outcome[0] = ValueError("this one")
        self.now += seconds
        self.scheduler.complete(self.now, batch, outcome)
        self.check_ended()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        assert self.scheduler.cancel(request)
        assert not self.scheduler.cancel(request)

    @rule(data=st.data(), is_available=st.booleans())
    def change(self, data: st.DataObject, is_available: bool) -> None:
        number = data.draw(st.integers(0, len(self.capacities) - 1))
        self.scheduler.set_available(self.now, number, is_available)
        self.down = True

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.2]) | st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_as_told(self) -> None:
        wakeup = self.scheduler.next_wakeup()
        self.now = max(self.now, self.now if wakeup is None else wakeup)

    @invariant()
    def limits_hold(self) -> None:
        statistics = self.scheduler.statistics()
        assert statistics.in_flight == len(self.in_flight)
        for number, capacity in enumerate(self.capacities):
            there = [batch for batch in self.in_flight if batch.replica == number]
            slots = capacity.ahead + (capacity.in_flight or len(there))
            assert len(there) <= min(self.limits.max_in_flight, slots)
            if not any(batch.search for batch in there):
                assert sum(map(len, there)) <= (capacity.items or self.items + 99)
        waiting = self.waiting()
        assert statistics.waiting == sum(len(request.items) - request.taken for request in waiting)
        # Beyond the limit only who has less than a fair share is taken in, and not without bound.
        assert statistics.waiting <= 2 * (self.limits.max_queue_size or statistics.waiting)
        cost = sum(request.cost(request.taken, len(request.items)) for request in waiting)
        assert self.scheduler._queue.cost == cost

    def waiting(self) -> list[Request]:
        """Whatever has items in the queue: requests, or what is computed for several."""
        computed = {id(request.carrier or request): request.carrier or request for request in self.open}
        return [request for request in computed.values() if request.taken < len(request.items)]

    def may_pass(self) -> bool:
        """Whether somebody may go past the order of the queue: for a deadline, or after too long a wait."""
        timed = self.limits.queue_timeout is not None or any(
            request.timeout is not None for request in self.open
        )
        return timed or self.now >= 2.0 / 4.0

    def run_backend(self, batch: Batch) -> list[Any] | BackendError:
        if len(batch) > self.bears:
            return BatchTooLarge("out of memory")
        if any(map(is_poison, batch.items)):
            return BatchFailed("poison")
        return list(map(answer, batch.items))

    def check_batch(self, batch: Batch) -> None:
        assert 1 <= len(batch) <= self.policy.max_batch_size
        assert {request.group for request, _, _ in batch.parts} == {batch.group}
        if batch.search is None:
            assert len(batch) <= (self.capacities[batch.replica].batch_size or len(batch))
        costs = [
            1 if request.costs is None else request.costs[place]
            for request, start, stop in batch.parts
            for place in range(start, stop)
        ]
        cost = len(costs) * max(costs) if self.policy.padded else sum(costs)
        assert batch.cost == cost
        assert cost <= (self.policy.max_batch_cost or cost) or len(batch) == 1
        live = {id(request.carrier or request) for request in self.open}
        assert all(id(request) in live for request, _, _ in batch.parts)
        if (
            batch.reason not in ("isolation", "retry", "hedge")
            and not self.policy.padded
            and not self.may_pass()
        ):
            last: dict[Any, float] = {}
            for request, _, _ in batch.parts:
                flow = request.tenant, request.weight
                assert request.arrived >= last.get(flow, 0.0)
                last[flow] = request.arrived

    def check_ended(self) -> None:
        ended = self.scheduler.collect_ended()
        assert len({id(request.results) for request in ended}) == len(ended)  # nobody shares a list
        for request in ended:
            self.open.remove(request)  # raises if it ended twice, or after it was cancelled
            if request.error is None:
                assert request.results == list(map(answer, request.items))
            elif isinstance(request.error, TimedOut):
                too_long = self.limits.queue_timeout or float("inf")
                assert request.timeout is not None or self.now >= request.arrived + too_long

    def teardown(self) -> None:
        """In the end everything that was admitted ends: nothing is lost and nothing is stuck."""
        for number in range(len(self.capacities)):
            self.scheduler.set_available(self.now, number, True)
        for _ in range(400):
            if not self.open:
                break
            while (batch := self.scheduler.take_batch(self.now)) is not None:
                self.check_batch(batch)
                self.in_flight.append(batch)
            while self.in_flight:
                batch = self.in_flight.pop()
                self.now += 0.01
                self.scheduler.complete(self.now, batch, self.run_backend(batch))
            self.check_ended()
            wakeup = self.scheduler.next_wakeup()
            self.now = max(self.now, wakeup if wakeup is not None else self.now)
        assert not self.open
        while self.in_flight:
            self.scheduler.complete(self.now, self.in_flight.pop(), ShuttingDown("shutting down"))
        assert self.scheduler.take_batch(self.now) is None
        assert self.scheduler.next_wakeup() is None
        assert self.scheduler.statistics().waiting == 0
        assert self.scheduler._leads == {}


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None, derandomize=True, print_blob=False
)
