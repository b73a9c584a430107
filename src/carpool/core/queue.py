"""The queue: whose turn it is, item by item.

Requests of one tenant and weight form a flow and leave in order of arrival; flows share the capacity by
start-time fair queueing (Goyal, Vin and Cheng, 1996): each flow has a tag, the virtual time at which it has
used up what it was served so far, and the smallest tag is served next. With one flow that is first come, first
served. It costs O(log flows) a request. What is cancelled or expires unserved is not charged to anybody.

It counts items and their cost, not requests, because those are what fills a batch. Removal is lazy: a request
that ended while it waited no longer counts at once, and its entry is dropped when it comes to the front, or
when most entries are such.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf
from operator import itemgetter

from carpool.core.batch import Part
from carpool.core.request import Request

_SPARE_FLOWS = 1024  # idle flows that are remembered before they are swept
_SPARE_ENTRIES = 64  # the same for entries of requests that have left


class Flow:
    """The waiting requests of one tenant and weight."""

    __slots__ = ("requests", "tag", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.tag = 0.0  # the virtual time at which it has used up what it was served so far
        self.requests: deque[Request] = deque()

    def waits(self) -> bool:
        """Whether any of its requests still waits; those that do not are dropped from the front."""
        requests = self.requests
        while requests:
            request = requests[0]
            if request.taken < len(request.items):
                return True
            requests.popleft()
        return False

    def in_order(self) -> Iterator[tuple[float, Request]]:
        """Its waiting requests, each with the tag that the flow will have when its turn comes."""
        tag = self.tag
        for request in self.requests:
            if _waits(request):
                yield tag, request
                tag += request.cost(request.taken, len(request.items)) / self.weight


class Queue:
    """Waiting requests in fair order, with spans: a request may leave in pieces. `len` counts items."""

    __slots__ = ("_arrivals", "_flows", "_heads", "_pushed", "_virtual", "_waiting", "cost")

    def __init__(self) -> None:
        self._flows: dict[tuple[str, float], Flow] = {}
        self._heads: list[tuple[float, int, Flow]] = []  # a heap: the busy flows by their tags
        self._arrivals: deque[Request] = deque()  # all of them in order of arrival
        self._virtual = 0.0  # the largest tag that was served
        self._pushed = 0
        self._waiting = 0
        self.cost = 0.0

    def __len__(self) -> int:
        return self._waiting

    def __repr__(self) -> str:
        return f"<Queue: {self._waiting} items waiting>"

    def push(self, request: Request) -> None:
        """Add a request at the back of its flow."""
        flow = self._flow_of(request)
        if not flow.requests:
            flow.tag = max(flow.tag, self._virtual)
            self._pushed += 1
            heapq.heappush(self._heads, (flow.tag, self._pushed, flow))
        flow.requests.append(request)
        self._arrivals.append(request)
        size = len(request.items)
        self._waiting += size
        self.cost += size if request.costs is None else request.cost(0, size)
        if len(self._arrivals) > _SPARE_ENTRIES + 2 * self._waiting:
            self._compact()

    def withdraw(self, request: Request) -> None:
        """Stop counting what still waits of a request that has ended."""
        size = len(request.items)
        if request.taken < size:
            self._uncount(size - request.taken, request.cost(request.taken, size))
            request.taken = size

    def oldest(self) -> Request | None:
        """The request that has waited longest."""
        arrivals = self._arrivals
        while arrivals:
            if _waits(arrivals[0]):
                return arrivals[0]
            arrivals.popleft()
        return None

    def take(self, limit: int, budget: float, admit: Callable[[Request], bool] | None) -> list[Part]:
        """Take out what is next in fair order: `limit` items and `budget` cost at most, but one item at least.

        `admit` is asked before a request leaves and may end it instead.
        """
        if admit is None and budget == inf and len(self._heads) == 1:
            return self._take_first(self._heads[0][2], limit)
        parts: list[Part] = []
        while limit and (flow := self._front()) is not None:
            request = flow.requests[0]
            if admit is not None and not admit(request):
                self.withdraw(request)
                continue
            start = request.taken
            stop = min(len(request.items), start + limit)
            cost = request.cost(start, stop)
            if cost > budget:
                stop, cost = _cut(request, start, stop, budget, not parts)
                if stop == start:
                    break
            parts.append(self._take_span(flow, request, stop, cost))
            limit -= stop - start
            budget -= cost
        return parts

    def _take_first(self, flow: Flow, limit: int) -> list[Part]:
        """`take` for the common case, one tenant and nothing to check: the books are done once a batch."""
        parts: list[Part] = []
        requests, items, cost = flow.requests, 0, 0.0
        while items < limit and requests:
            request = requests[0]
            start, stop = request.taken, len(request.items)
            if start == stop:
                requests.popleft()
                continue
            if stop - start > limit - items:
                stop = start + limit - items
            request.taken = stop
            parts.append(Part(request, start, stop))
            items += stop - start
            cost += stop - start if request.costs is None else request.cost(start, stop)
        if flow.tag > self._virtual:
            self._virtual = flow.tag
        flow.tag += cost / flow.weight
        self._uncount(items, cost)
        return parts

    def take_chosen(self, request: Request, stop: int) -> Part:
        """Take out the next items of any waiting request, up to `stop`."""
        return self._take_span(self._flow_of(request), request, stop, request.cost(request.taken, stop))

    def candidates(self, count: int) -> list[Request]:
        """The first requests in fair order, so many at most."""
        self._forget_idle_heads()
        in_order = heapq.merge(*(flow.in_order() for _, _, flow in self._heads), key=itemgetter(0))
        return [request for _, request in islice(in_order, count)]

    def _flow_of(self, request: Request) -> Flow:
        """The flow of a request. Flows for which nothing waits are forgotten once there are many."""
        flow = self._flows.get((request.tenant, request.weight))
        if flow is None:
            if len(self._flows) > _SPARE_FLOWS + 2 * len(self._heads):
                self._flows = {key: known for key, known in self._flows.items() if known.requests}
            flow = self._flows[request.tenant, request.weight] = Flow(request.weight)
        return flow

    def _take_span(self, flow: Flow, request: Request, stop: int, cost: float) -> Part:
        start = request.taken
        self._virtual = max(self._virtual, flow.tag)
        flow.tag += cost / flow.weight
        request.taken = stop
        self._uncount(stop - start, cost)
        return Part(request, start, stop)

    def _uncount(self, items: int, cost: float) -> None:
        self._waiting -= items
        self.cost = self.cost - cost if self._waiting else 0.0  # so that rounding does not add up

    def _front(self) -> Flow | None:
        """The flow whose turn it is, with the heap put right on the way."""
        heads = self._heads
        while heads:
            tag, _, flow = heads[0]
            if not flow.waits():
                heapq.heappop(heads)
            elif len(heads) == 1:  # whose tag matters to nobody else
                return flow
            elif flow.tag > tag:
                self._pushed += 1
                heapq.heapreplace(heads, (flow.tag, self._pushed, flow))
            else:
                return flow
        return None

    def _forget_idle_heads(self) -> None:
        self._heads = [(flow.tag, number, flow) for _, number, flow in self._heads if flow.waits()]
        heapq.heapify(self._heads)

    def _compact(self) -> None:
        """Drop the entries of requests that have left, wherever they are."""
        self._arrivals = deque(filter(_waits, self._arrivals))
        for _, _, flow in self._heads:
            flow.requests = deque(filter(_waits, flow.requests))
        self._forget_idle_heads()


def _waits(request: Request) -> bool:
    return request.taken < len(request.items)


def _cut(request: Request, start: int, stop: int, budget: float, must: bool) -> tuple[int, float]:
    """How far into a request a budget reaches, and what that costs; one item at least if it `must`."""
    spent = 0.0
    for place in range(start, stop):
        cost = request.cost(place, place + 1)
        if spent + cost > budget and not (must and place == start):
            return place, spent
        spent += cost
    return stop, spent
