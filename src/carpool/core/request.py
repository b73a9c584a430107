"""One caller's request and its life: queued, in flight, ended.

A request of n items is one object with a cursor, not n objects: a large one is split over several batches
and still comes back whole and in order. It knows nothing of queues, batches or who waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import inf
from typing import Any, Literal

Priority = Literal["high", "normal", "low"]

# How large a share each class gets when all compete. Shares, not ranks: the lowest class never starves.
WEIGHTS: dict[Priority, float] = {"high": 4.0, "normal": 1.0, "low": 0.25}


class Request:
    """What one caller asked for.

    `items` is what the backend takes, one element per result, and `costs` what each of them costs to run (in
    any one unit, such as tokens; 1 each where it is None). `deliver` belongs to the driver, which calls it once
    the request has ended; the core never does. Then either `error` is set, or `results` pairs with `items`.
    `owner` is the driver's too: whoever admitted it.

    `tenant` and `weight` say whose share of the capacity it uses and how large that share is. `timeout` is the
    seconds within which it must be answered. Requests with the same `key` have the same results and may share
    one computation. Only requests of the same `group` travel together.
    """

    # Defaults are the class's: most requests end before they need another value, and need not be given it.
    arrived: float = 0.0  # the times are the scheduler's, which sets them
    left: float = 0.0  # when the last of it that has been answered had left
    deadline: float = inf  # by when it must be answered
    expires: float = inf  # until when it may wait
    taken: int = 0  # items that have left the queue, always the first ones
    error: BaseException | None = None
    ended: bool = False  # there is nothing to compute for anybody any more
    has_failed: bool = False
    carrier: Request | None = None  # the request with its key that is computed in its place
    riders: list[Request] | None = None  # for whom this one is computed as well
    is_orphan: bool = False  # its own caller has gone or was told something else; its riders wait
    owner: Any = None

    def __init__(
        self,
        items: Sequence[Any],
        deliver: Callable[[Request], None] | None = None,
        *,
        costs: Sequence[float] | None = None,
        tenant: str = "",
        weight: float = 1.0,
        timeout: float | None = None,
        key: Hashable = None,
        group: Hashable = None,
    ) -> None:
        if costs is not None:
            for cost in costs:
                if not 0 <= cost < inf:
                    raise ValueError("a cost is a number, 0 or more")
        self.items = items
        self.costs = costs
        self.deliver = deliver
        self.tenant = tenant
        self.weight = weight
        self.timeout = timeout
        # What is computed depends on the group as well: no key is shared across two.
        self.key = key if key is None or group is None else (group, key)
        self.group = group
        self.missing = len(items)  # items whose result is not here yet
        self.results: list[Any] = []  # in the order of `items`, once it has ended well

    def __repr__(self) -> str:
        size = len(self.items)
        if self.ended:
            state = "failed" if self.error else "ended"
        else:
            state = f"{size - self.taken} queued, {size - self.missing} of {size} answered"
        return f"<Request of {size}: {state}>"

    def cost(self, start: int, stop: int) -> float:
        """What the items `start:stop` cost."""
        if self.costs is None:
            return stop - start
        return self.costs[start] if stop - start == 1 else sum(self.costs[start:stop])

    def fail(self, error: BaseException) -> None:
        """End the request with an error."""
        self.error = error
        self.has_failed = True
        self.ended = True

    def receive(self, start: int, stop: int, results: Sequence[Any], offset: int) -> bool:
        """Put a batch's results from `offset` on in the places of the items `start:stop`; whether that ends it.

        A result that is an exception is the error of its item, and fails its request alone.
        """
        if not self.results:
            self.results = [None] * len(self.items)
        for place in range(start, stop):
            result = results[offset]
            if isinstance(result, BaseException):
                self.fail(result)
                return True
            self.results[place] = result
            offset += 1
        self.missing -= stop - start
        self.ended = not self.missing
        return self.ended
