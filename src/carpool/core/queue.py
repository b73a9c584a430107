"""The queue: whose turn it is, item by item.

Requests of one tenant and weight form a flow and leave in order of arrival; flows share the capacity by
start-time fair queueing (Goyal, Vin and Cheng, 1996): each request is tagged with the virtual time at which its
flow has used up what it had before, and the smallest tag leaves first. With one flow that is first come, first
served. It costs O(log flows) a request.

It counts items and their cost, not requests, because those are what fills a batch. Removal is lazy: a request
that ended while it waited no longer counts at once, and its entry is dropped when it comes to the front.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf

from carpool.core.batch import Part
from carpool.core.request import Request

_SPARE_FLOWS = 1024  # idle flows that are remembered before they are swept


class Flow:
    """The waiting requests of one tenant and weight."""

    __slots__ = ("finish", "requests", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.finish = 0.0  # the virtual time at which it has used up what it asked for so far
        self.requests: deque[Request] = deque()


class Queue:
    """Waiting requests in fair order, with spans: a request may leave in pieces. `len` counts items."""

    __slots__ = ("_arrivals", "_flows", "_heads", "_pushed", "_virtual", "_waiting", "cost")

    def __init__(self) -> None:
        self._flows: dict[tuple[str, float], Flow] = {}
        self._heads: list[tuple[float, int, Flow]] = []  # a heap: the tag of each busy flow's first request
        self._arrivals: deque[Request] = deque()  # all of them in order of arrival
        self._virtual = 0.0  # the tag of what left last
        self._pushed = 0
        self._waiting = 0
        self.cost = 0.0

    def __len__(self) -> int:
        return self._waiting

    def __repr__(self) -> str:
        return f"<Queue: {self._waiting} items waiting>"

    def push(self, request: Request) -> None:
        """Add a request at the back of its flow."""
        flow = self._flows.get((request.tenant, request.weight))
        if flow is None:
            flow = self._flows[request.tenant, request.weight] = Flow(request.weight)
            self._sweep()
        size = len(request.items)
        cost = request.cost(0, size)
        request.tag = max(self._virtual, flow.finish)
        flow.finish = request.tag + cost / flow.weight
        if not flow.requests:
            self._pushed += 1
            heapq.heappush(self._heads, (request.tag, self._pushed, flow))
        flow.requests.append(request)
        self._arrivals.append(request)
        self._waiting += size
        self.cost += cost

    def withdraw(self, request: Request) -> None:
        """Stop counting what still waits of a request that has ended."""
        size = len(request.items)
        if request.taken < size:
            self._waiting -= size - request.taken
            self.cost -= request.cost(request.taken, size)
            request.taken = size

    def oldest(self) -> Request | None:
        """The request that has waited longest."""
        arrivals = self._arrivals
        while arrivals:
            request = arrivals[0]
            if request.taken < len(request.items):
                return request
            arrivals.popleft()
        return None

    def take(self, limit: int, budget: float, admit: Callable[[Request], bool]) -> list[Part]:
        """Take out what is next in fair order: `limit` items and `budget` cost at most, but one item at least.

        `admit` is asked before a request leaves and may end it instead.
        """
        parts: list[Part] = []
        while limit and (request := self._front()) is not None:
            if not admit(request):
                self.withdraw(request)
                continue
            start = request.taken
            stop = min(len(request.items), start + limit)
            cost = request.cost(start, stop)
            if cost > budget:
                stop, cost = _cut(request, start, stop, budget, not parts)
                if stop == start:
                    break
            parts.append(self._take_span(request, start, stop, cost))
            limit -= stop - start
            budget -= cost
        return parts

    def take_chosen(self, request: Request, stop: int) -> Part:
        """Take out the next items of any waiting request, up to `stop`."""
        return self._take_span(request, request.taken, stop, request.cost(request.taken, stop))

    def candidates(self, count: int) -> list[Request]:
        """The first requests in fair order, so many at most."""
        busy = [flow.requests for _, _, flow in self._heads]
        if len(busy) == 1:
            return list(islice(_waiting(busy[0]), count))
        return list(islice(heapq.merge(*map(_waiting, busy), key=lambda request: request.tag), count))

    def _take_span(self, request: Request, start: int, stop: int, cost: float) -> Part:
        self._virtual = max(self._virtual, request.tag)
        request.tag += cost / request.weight
        request.taken = stop
        self._waiting -= stop - start
        self.cost = self.cost - cost if self._waiting else 0.0  # so that rounding does not add up
        return Part(request, start, stop)

    def _front(self) -> Request | None:
        """The request whose turn it is, with the heap of flows put right on the way."""
        heads = self._heads
        while heads:
            tag, _, flow = heads[0]
            requests = flow.requests
            while requests and requests[0].taken == len(requests[0].items):
                requests.popleft()
            if not requests:
                heapq.heappop(heads)
            elif requests[0].tag > tag:
                self._pushed += 1
                heapq.heapreplace(heads, (requests[0].tag, self._pushed, flow))
                if heads[0][2] is flow:
                    return requests[0]
            else:
                return requests[0]
        return None

    def _sweep(self) -> None:
        """Forget flows that wait for nothing and owe nothing, once there are many."""
        if len(self._flows) > _SPARE_FLOWS + 2 * len(self._heads):
            self._flows = {
                key: flow for key, flow in self._flows.items() if flow.requests or flow.finish > self._virtual
            }


def _waiting(requests: deque[Request]) -> Iterator[Request]:
    return (request for request in requests if request.taken < len(request.items))


def _cut(request: Request, start: int, stop: int, budget: float, must: bool) -> tuple[int, float]:
    """How far into a request a budget reaches, and what that costs; one item at least if it `must`."""
    spent = 0.0
    for place in range(start, stop):
        cost = request.cost(place, place + 1)
        if spent + cost > budget and not (must and place == start):
            return place, spent
        spent += cost
    return stop, spent


NO_BUDGET = inf
