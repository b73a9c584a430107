"""One of the places where batches run: what it takes, what runs there, how fast it is, and whether it is well.

A replica has slots, a device behind them (`device.py`) with a learned curve, a breaker, and a batch size that
shrinks when a batch was too large for it. It knows nothing of the queue.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from carpool.core.batch import Batch, Search
from carpool.core.breaker import Breaker
from carpool.core.curve import Curve
from carpool.core.device import Device

_GROW_AFTER = 100  # batches without a complaint, until a size that was too large is approached by one
# Of a batch's time a full one goes ahead, to wait there. Measured, a model of 11 ms and 64 users: 0.3 does as
# many requests a second as 1 (21 % more than none), and leaves who is more urgent more time to come.
_AHEAD = 0.3
# Seconds: going ahead by less than timers can tell is not worth it. A model that takes no time did 15 %
# fewer requests a second, as the server and its worker were then in each other's way.
_TICK = 0.001


class Capacity(NamedTuple):
    """The most that a replica takes; `None` where there is no such limit, or none that it has named."""

    in_flight: int | None = None  # batches at once
    batch_size: int | None = None  # items in a batch
    batch_cost: float | None = None  # what a batch may cost, in the unit in which requests are priced
    items: int | None = None  # in all batches in flight
    ahead: int = 0  # full batches beyond `in_flight`, to wait there: it runs one after the other, and says so


class Replica:
    """The scheduler's books on one replica. Sizes are in items, times in seconds."""

    __slots__ = (
        "_batch_size",
        "_most_at_once",
        "_most_items",
        "_since_complaint",
        "_size_cap",
        "_watches_device",
        "ahead",
        "breaker",
        "budget",
        "device",
        "in_flight",
        "is_available",
        "is_leaving",
        "items",
        "number",
        "sent_at",
        "slots",
    )

    def __init__(self, number: int, capacity: Capacity, most_at_once: int, watches_device: bool) -> None:
        self.number = number
        self.breaker = Breaker()
        self.device = Device()
        self.in_flight: dict[int, Batch] = {}
        self.items = 0  # in flight
        self.sent_at = -inf  # when a batch last left
        self.is_available = True  # as the driver says
        self.is_leaving = False  # once what is in flight there has ended
        self._most_at_once = most_at_once
        self._watches_device = watches_device
        self._size_cap = inf  # what it has shown to bear
        self._since_complaint = 0
        self.set_capacity(capacity)

    def __repr__(self) -> str:
        return f"<Replica {self.number}: {len(self.in_flight)} of {self.slots} slots busy, {self.device}>"

    @property
    def curve(self) -> Curve:
        """The time for which a batch occupies it, by its cost."""
        return self.device.curve

    @property
    def width(self) -> int:
        """How many batches run at once: as many as there are slots, or one where they lead to one device."""
        return 1 if self.device.serial else self.slots

    def set_capacity(self, capacity: Capacity) -> None:
        """It has said what it takes."""
        self.slots = int(min(self._most_at_once, _or_inf(capacity.in_flight)))
        self.ahead = min(capacity.ahead, self._most_at_once - self.slots)
        self.device.declare(is_serial=self.ahead > 0)
        self.budget = _or_inf(capacity.batch_cost)
        self._batch_size = _or_inf(capacity.batch_size)
        self._most_items = _or_inf(capacity.items)

    def limit(self, most: int) -> int:
        """How many items a batch may have that leaves now, of `most` that are allowed."""
        return int(min(most, self._batch_size, self._size_cap, max(1, self._most_items - self.items)))

    def gains_ahead(self, cost: float) -> bool:
        """Whether a full batch of this cost is better there, while another runs, than in the queue."""
        return self.ahead > 0 and _AHEAD * self.curve.predict(cost) > _TICK

    def is_up(self, now: float) -> bool:
        """Whether batches may be sent to it at all."""
        return self.is_available and self.breaker.allows(now)

    def is_free(self, now: float, is_full: bool = False) -> bool:
        """Whether a batch may be sent now. One that is full gains nothing here, so it may wait there."""
        slots = self.slots + self.ahead if is_full else self.slots
        return len(self.in_flight) < slots and self.items < self._most_items and self.is_up(now)

    def last_expected(self) -> float:
        """When the batch that left last is expected back."""
        return self.in_flight[next(reversed(self.in_flight))].expected_at if self.in_flight else -inf

    def opens_at(self, full_cost: float | None) -> float:
        """When a serial device can do with another batch: one that leaves then finds it idle at last.

        A batch that cannot grow, and will cost so much, may go ahead by one batch time: it would only wait. By
        less where a replica has said that it runs one after the other: there the ends are known well.
        """
        if not self.device.serial:
            return -inf
        ahead = 0.0 if full_cost is None else self.curve.predict(full_cost) * (_AHEAD if self.ahead else 1)
        return self.last_expected() - self.device.overlap - ahead

    def frees_in(self, now: float) -> float:
        """How long until a batch could begin to run."""
        if self.device.serial:
            return max(self.device.overlap, self.last_expected() - now)
        if len(self.in_flight) < self.slots:
            return 0.0
        return max(0.0, min(batch.expected_at for batch in self.in_flight.values()) - now)

    def ends(self) -> list[float]:
        """When the batches that occupy it are expected back."""
        if self.device.serial:
            return [self.last_expected()] if self.in_flight else []
        return [batch.expected_at for batch in self.in_flight.values()]

    def launch(self, batch: Batch) -> None:
        """A batch leaves."""
        self.device.expect(self.last_expected(), (batch,))
        self.in_flight[batch.number] = batch
        self.sent_at = batch.taken_at
        self.items += len(batch)
        self.breaker.sent()

    def ended(self, now: float) -> None:
        """A batch is back, well or not; to be told after what became of it."""
        self.device.ended(now)
        if self.device.serial:
            self.device.expect(now, self.in_flight.values())

    def release(self, batch: Batch) -> None:
        """A batch no longer runs here."""
        del self.in_flight[batch.number]
        self.items -= len(batch)

    def succeeded(self, now: float, batch: Batch) -> None:
        """A batch is back well. Those of a search teach no times, but show what it bears."""
        self.breaker.succeeded()
        if batch.search is not None:
            self._size_cap = max(self._size_cap, len(batch))
        elif self._watches_device or self.ahead:
            self.device.learn(now, batch)
        elif batch.number > 1:  # the first may be a cold start
            self.curve.learn(batch.cost, now - batch.taken_at)
        if self._size_cap < inf:
            self._since_complaint += 1
            if self._since_complaint >= _GROW_AFTER:
                self._size_cap += 1
                self._since_complaint = 0

    def complained(self, batch: Batch, search: Search) -> None:
        """A batch of several items was too large."""
        search.bore.setdefault(self.number, self._size_cap)
        self._size_cap = max(search.largest, min(self._size_cap, len(batch) // 2))
        self._since_complaint = 0

    def excused(self, search: Search) -> None:
        """It was one item that was too large by itself, and never the batches in which it was."""
        self._size_cap = max(self._size_cap, search.bore.pop(self.number, 0))


def _or_inf(limit: float | None) -> float:
    return inf if limit is None else limit
