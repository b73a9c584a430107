"""One caller's request and its life: queued, in flight, ended.

A request of n items is one object with a cursor, not n objects: a large one is split over several batches
and still comes back whole and in order. It knows nothing of queues, batches or who waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any


class Request:
    """What one caller asked for.

    `items` is what the backend takes, one element per result. `deliver` belongs to the driver, which calls
    it once the request has ended; the core never does. Then either `error` is set, or `results` pairs with
    `items`. `arrived` and `deadline` (until when it may wait) are in the scheduler's time, which sets them.
    """

    __slots__ = ("arrived", "deadline", "deliver", "ended", "error", "items", "missing", "results", "taken")

    def __init__(self, items: Sequence[Any], deliver: Callable[[Request], None] | None = None) -> None:
        size = len(items)
        self.items = items
        self.deliver = deliver
        self.arrived = 0.0
        self.deadline = inf
        self.taken = 0  # items that have left the queue, always the first ones
        self.missing = size  # items whose result is not here yet
        self.results: list[Any] = [None] * size
        self.error: BaseException | None = None
        self.ended = False

    def __repr__(self) -> str:
        size = len(self.items)
        if self.ended:
            state = "failed" if self.error else "ended"
        else:
            state = f"{size - self.taken} queued, {size - self.missing} of {size} answered"
        return f"<Request of {size}: {state}>"

    def fail(self, error: BaseException) -> None:
        """End the request with an error."""
        self.error = error
        self.ended = True

    def receive(self, start: int, results: Sequence[Any]) -> bool:
        """Put the results of the items from `start` on in their places; whether that ends the request.

        A result that is an exception is the error of its item, and fails its request alone.
        """
        for position, result in enumerate(results, start):
            if isinstance(result, BaseException):
                self.fail(result)
                return True
            self.results[position] = result
        self.missing -= len(results)
        self.ended = not self.missing
        return self.ended
