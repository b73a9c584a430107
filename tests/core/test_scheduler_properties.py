"""What holds of the scheduler whatever happens, in whatever order."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from carpool.core.admission import Limits
from carpool.core.batch import Batch
from carpool.core.policy import BatchPolicy
from carpool.core.request import Request
from carpool.core.scheduler import Scheduler
from carpool.errors import BackendError, Overloaded


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, batches leave, fail and succeed, callers go, time passes; in any order."""

    @initialize(
        name=st.sampled_from(["adaptive", "timeout"]),
        size=st.integers(1, 5),
        slots=st.integers(1, 3),
        queue=st.integers(1, 12),
    )
    def build(self, name: Any, size: int, slots: int, queue: int) -> None:
        self.size, self.slots, self.queue = size, slots, queue
        self.scheduler = Scheduler(BatchPolicy(name, size, 1.0), Limits(slots, queue, queue_timeout=5.0))
        self.now = 0.0
        self.items = 0
        self.open: list[Request] = []
        self.cancelled: list[Request] = []
        self.in_flight: list[Batch] = []

    @rule(count=st.integers(1, 8))
    def submit(self, count: int) -> None:
        request = Request(range(self.items, self.items + count))
        self.items += count
        waiting = self.scheduler.statistics().waiting
        try:
            self.scheduler.submit(self.now, request)
        except Overloaded:
            assert waiting + count > self.queue
        else:
            assert waiting + count <= self.queue
            self.open.append(request)

    @rule()
    def take(self) -> None:
        batch = self.scheduler.take_batch(self.now)
        if batch is not None:
            assert 1 <= len(batch) <= self.size
            assert not any(request in self.cancelled for request, _, _ in batch.parts)
            oldest_first = [request.arrived for request, _, _ in batch.parts]
            assert oldest_first == sorted(oldest_first)
            self.in_flight.append(batch)
        self.check_ended()

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), fate=st.sampled_from(["answer", "answer", "answer", "raise", "short", "item"]))
    def complete(self, data: st.DataObject, fate: str) -> None:
        batch = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        outcome: Any = [item * 10 for item in batch.items]
        if fate == "raise":
            outcome = BackendError("no")
        elif fate == "short":
            outcome.pop()
        elif fate == "item":
            outcome[0] = ValueError("this one")
        self.scheduler.complete(self.now, batch, outcome)
        self.check_ended()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.scheduler.cancel(request)
        self.cancelled.append(request)

    @rule(seconds=st.floats(0.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def limits_hold(self) -> None:
        statistics = self.scheduler.statistics()
        assert 0 <= statistics.waiting <= self.queue
        assert statistics.in_flight == len(self.in_flight) <= self.slots

    def check_ended(self) -> None:
        for request in self.scheduler.collect_ended():
            self.open.remove(request)  # raises if it ended twice, or after it was cancelled
            if request.error is None:
                assert request.results == [item * 10 for item in request.items]

    def teardown(self) -> None:
        """In the end everything that was admitted ends: nothing is lost and nothing is stuck."""
        for _ in range(200):
            if not self.open:
                break
            while (batch := self.scheduler.take_batch(self.now)) is not None:
                self.in_flight.append(batch)
            while self.in_flight:
                batch = self.in_flight.pop()
                self.scheduler.complete(self.now, batch, [item * 10 for item in batch.items])
            self.check_ended()
            wakeup = self.scheduler.next_wakeup()
            self.now = max(self.now, wakeup if wakeup is not None else self.now)
        assert not self.open
        assert self.scheduler.statistics().waiting == 0


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
