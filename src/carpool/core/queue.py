"""The queue: whose turn it is, item by item.

Requests of one tenant and weight have a share of the capacity, and shares compete by start-time fair queueing
(Goyal, Vin and Cheng, 1996): each has a tag, the virtual time at which it has used up what it was served so
far, and the smallest tag is served next. With one share that is first come, first served. What is cancelled
or expires unserved is not charged to anybody.

Only requests of the same group may travel together, so each group has a lane of its own; tags hold across
lanes. A share's requests in one lane form a flow and leave in order of arrival. It costs O(log flows) a
request and O(lanes) a batch.

It counts items and their cost, not requests, because those are what fills a batch. Removal is lazy: a request
that ended while it waited no longer counts at once, and its entry is dropped when it comes to the front, or
when most entries are such.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from itertools import islice, takewhile
from math import inf
from operator import itemgetter

from carpool.core.batch import Part
from carpool.core.request import Request

_SPARE_FLOWS = 1024  # idle flows and shares that are remembered before they are swept
_SPARE_ENTRIES = 64  # the same for entries of requests that have left
_SPARE_LANES = 16
_PATIENCE = 2.0  # seconds, divided by the weight, after which a request is overdue whatever its share


class Share:
    """What a tenant of one weight has been served, and what of it waits."""

    __slots__ = ("tag", "waiting", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.tag = 0.0  # the virtual time at which it has used up what it was served so far
        self.waiting = 0  # items


class Flow:
    """The waiting requests of a share in one lane, in order of arrival."""

    __slots__ = ("arrivals", "is_head", "requests", "share")

    def __init__(self, share: Share) -> None:
        self.share = share
        self.requests: deque[Request] = deque()
        self.arrivals = self.requests  # of all flows of this weight in the lane; not these where it has company
        self.is_head = False  # whether it is in its lane's heap

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
        """Its waiting requests, each with the tag that the share will have when its turn comes."""
        tag = self.share.tag
        for request in self.requests:
            if _waits(request):
                yield tag, request
                tag += request.cost(request.taken, len(request.items)) / self.share.weight


class Lane:
    """The waiting requests of one group, `waiting` items that cost `cost`."""

    __slots__ = ("_alone", "_arrivals", "_pushed", "cost", "flows", "group", "heads", "waiting")

    def __init__(self, group: Hashable) -> None:
        self.group = group
        self.waiting = 0
        self.cost = 0.0
        self.flows: dict[tuple[str, float], Flow] = {}
        self.heads: list[tuple[float, int, Flow]] = []  # a heap: the busy flows by their tags
        self._pushed = 0
        self._arrivals: dict[float, deque[Request]] = {}  # by weight, in order of arrival
        self._alone: dict[float, Flow] = {}  # the flow of a weight that there is but one of

    def oldest(self) -> Request:
        """The request that has waited longest. There must be one."""
        fronts = [front for front in map(self._front_of, self._arrivals.values()) if front is not None]
        return fronts[0] if len(fronts) == 1 else min(fronts, key=_arrived)

    def overstayed(self, now: float, most: float) -> list[Request]:
        """Who has waited for so long, or longer."""
        return [
            request
            for arrivals in self._arrivals.values()
            for request in takewhile(lambda request: request.arrived + most <= now, arrivals)
            if _waits(request)
        ]

    def leaves_at(self, now: float, most: float) -> float:
        """When the next one will have; who already has does not count."""
        waiting = (
            request.arrived + most
            for arrivals in self._arrivals.values()
            for request in islice((r for r in arrivals if _waits(r) and r.arrived + most > now), 1)
        )
        return min(waiting, default=inf)

    def overdue(self, now: float, most: int) -> list[Request]:
        """Who has waited for longer than their class should, the first in each class; so many at most."""
        found: list[Request] = []
        for weight, arrivals in self._arrivals.items():
            since = now - _PATIENCE / weight
            if self._front_of(arrivals) is not None and arrivals[0].arrived < since:
                first = islice(arrivals, most - len(found))
                found += [request for request in first if _waits(request) and request.arrived < since]
        return found

    def front(self) -> Flow | None:
        """The flow whose turn it is, with the heap put right on the way."""
        heads = self.heads
        while heads:
            tag, _, flow = heads[0]
            if not flow.waits():
                heapq.heappop(heads)
                flow.is_head = False
            elif flow.share.tag > tag and len(heads) > 1:  # the tag of the only one matters to nobody
                self._pushed += 1
                heapq.heapreplace(heads, (flow.share.tag, self._pushed, flow))
            else:
                return flow
        return None

    def add_flow(self, key: tuple[str, float], share: Share) -> Flow:
        """A flow for a share that is not known here."""
        flow = self.flows[key] = Flow(share)
        weight = share.weight
        if weight not in self._arrivals:
            self._arrivals[weight], self._alone[weight] = flow.arrivals, flow
            return flow
        if (first := self._alone.pop(weight, None)) is not None:
            first.arrivals = self._arrivals[weight] = deque(first.requests)
        flow.arrivals = self._arrivals[weight]
        return flow

    def add_head(self, flow: Flow) -> None:
        """A flow has something to serve again."""
        flow.is_head = True
        self._pushed += 1
        heapq.heappush(self.heads, (flow.share.tag, self._pushed, flow))

    def candidates(self, count: int) -> list[Request]:
        """The first requests in fair order, so many at most."""
        self._forget_idle_heads()
        in_order = heapq.merge(*(flow.in_order() for _, _, flow in self.heads), key=itemgetter(0))
        return [request for _, request in islice(in_order, count)]

    def _front_of(self, arrivals: deque[Request]) -> Request | None:
        while arrivals:
            if _waits(arrivals[0]):
                return arrivals[0]
            arrivals.popleft()
        return None

    def _forget_idle_heads(self) -> None:
        for _, _, flow in self.heads:
            flow.is_head = flow.waits()
        self.heads = [(flow.share.tag, pushed, flow) for _, pushed, flow in self.heads if flow.is_head]
        heapq.heapify(self.heads)

    def compact(self) -> None:
        """Drop the entries of requests that have left, wherever they are."""
        for entries in (*self._arrivals.values(), *(flow.requests for _, _, flow in self.heads)):
            left = list(filter(_waits, entries))
            entries.clear()
            entries.extend(left)
        self._forget_idle_heads()


class Queue:
    """Waiting requests in fair order, with spans: a request may leave in pieces.

    `waiting` counts items, `cost` is what they cost, and `weight` sums the weights of the shares that wait.
    """

    __slots__ = ("_lanes", "_shares", "_virtual", "cost", "waiting", "weight")

    def __init__(self) -> None:
        self._lanes: dict[Hashable, Lane] = {}
        self._shares: dict[tuple[str, float], Share] = {}
        self._virtual = 0.0  # the largest tag that was served
        self.waiting = 0
        self.cost = 0.0
        self.weight = 0.0

    def __len__(self) -> int:
        return self.waiting

    def __repr__(self) -> str:
        return f"<Queue: {self.waiting} items waiting>"

    def mean_cost(self) -> float:
        """Of an item that waits; 1 where that says nothing."""
        return self.cost / self.waiting if self.cost else 1.0

    def push(self, request: Request) -> None:
        """Add a request at the back of its flow."""
        lane = self._lanes.get(request.group)
        if lane is None:
            lane = self._new_lane(request.group)
        flow = lane.flows.get((request.tenant, request.weight))
        if flow is None:
            flow = self._new_flow(lane, request)
        share = flow.share
        size, costs = len(request.items), request.costs
        cost = size if costs is None else costs[0] if size == 1 else sum(costs)
        if not share.waiting:
            self.weight += share.weight
            if share.tag < self._virtual:
                share.tag = self._virtual
        share.waiting += size
        lane.waiting += size
        lane.cost += cost
        self.waiting += size
        self.cost += cost
        flow.requests.append(request)
        if flow.arrivals is not flow.requests:
            flow.arrivals.append(request)
        if not flow.is_head:
            lane.add_head(flow)
        if len(flow.arrivals) > _SPARE_ENTRIES + 2 * lane.waiting:
            lane.compact()

    def withdraw(self, request: Request) -> None:
        """Stop counting what still waits of a request that has ended."""
        start, size = request.taken, len(request.items)
        if start < size:
            lane = self._lanes[request.group]
            share = lane.flows[request.tenant, request.weight].share
            self._uncount(lane, share, size - start, request.cost(start, size))
            request.taken = size

    def overstayed(self, now: float, most: float) -> list[Request]:
        """Who has waited for so long, or longer."""
        return [request for lane in self._lanes.values() for request in lane.overstayed(now, most)]

    def leaves_at(self, now: float, most: float) -> float:
        """When the next one will have waited for so long; who already has does not count."""
        return min((lane.leaves_at(now, most) for lane in self._lanes.values()), default=inf)

    def next_lane(self) -> Lane | None:
        """The lane whose turn it is: that of the smallest tag."""
        lanes = self._lanes
        if not self.waiting:
            return None
        if len(lanes) == 1:
            return next(iter(lanes.values()))
        return min((lane for lane in lanes.values() if lane.waiting), key=_tag)

    def waits_of(self, tenant: str, weight: float) -> int:
        """How many items of one share wait."""
        share = self._shares.get((tenant, weight))
        return 0 if share is None else share.waiting

    def take(
        self,
        lane: Lane,
        limit: int,
        budget: float = inf,
        admit: Callable[[Request], bool] | None = None,
        parts: list[Part] | None = None,
    ) -> list[Part]:
        """Take out what is next in fair order: `limit` items and `budget` cost at most.

        What is taken is added to `parts`, if given; one item at least if there are none yet, whatever it
        costs. `admit` is asked before a request leaves and may end it instead.
        """
        parts = [] if parts is None else parts
        is_full = False
        while limit > 0 and not is_full and (flow := lane.front()) is not None:
            share, requests = flow.share, flow.requests
            weight = share.weight
            # Its turn lasts until its tag passes the next one's.
            heads = lane.heads
            turn = inf if len(heads) == 1 else (min(heads[1:3])[0] - share.tag) * weight
            items, spent, before = 0, 0.0, 0.0
            while items < limit and spent <= turn and requests:
                request = requests[0]
                start, stop = request.taken, len(request.items)
                if start == stop:
                    requests.popleft()
                    continue
                if admit is not None and not admit(request):
                    self.withdraw(request)
                    continue
                if stop - start > limit - items:
                    stop = start + limit - items
                cost = stop - start if request.costs is None else request.cost(start, stop)
                is_cut = spent + cost > budget
                if is_cut:
                    stop, cost = _cut(request, start, stop, budget - spent, not parts)
                    if stop == start:
                        is_full = True
                        break
                request.taken = stop
                parts.append((request, start, stop))
                items += stop - start
                before = spent
                spent += cost
                if is_cut:
                    break
            if items:
                self._charge(share, before, spent)
                self._uncount(lane, share, items, spent)
            limit -= items
            budget -= spent
        return parts

    def take_chosen(self, request: Request, stop: int) -> Part:
        """Take out the next items of any waiting request, up to `stop`."""
        lane = self._lanes[request.group]
        share = lane.flows[request.tenant, request.weight].share
        start = request.taken
        cost = request.cost(start, stop)
        request.taken = stop
        self._charge(share, 0.0, cost)
        self._uncount(lane, share, stop - start, cost)
        return request, start, stop

    def _charge(self, share: Share, before: float, spent: float) -> None:
        """A share was served `spent`, of which `before` until its last request."""
        last = share.tag + before / share.weight
        if last > self._virtual:
            self._virtual = last
        share.tag += spent / share.weight

    def _uncount(self, lane: Lane, share: Share, items: int, cost: float) -> None:
        share.waiting -= items
        lane.waiting -= items
        self.waiting -= items
        lane.cost -= cost
        self.cost -= cost
        if not share.waiting:
            self.weight -= share.weight
        if not lane.waiting:
            lane.cost = 0.0  # so that rounding does not add up
        if not self.waiting:
            self.cost = self.weight = 0.0

    def _new_lane(self, group: Hashable) -> Lane:
        if len(self._lanes) > _SPARE_LANES:
            self._lanes = {name: lane for name, lane in self._lanes.items() if lane.waiting}
        lane = self._lanes[group] = Lane(group)
        return lane

    def _new_flow(self, lane: Lane, request: Request) -> Flow:
        """A flow for a share that is not known in the lane; those for which nothing waits are swept."""
        if len(lane.flows) > _SPARE_FLOWS + 2 * len(lane.heads):
            lane.flows = {key: flow for key, flow in lane.flows.items() if flow.requests}
        if len(self._shares) > 2 * _SPARE_FLOWS + 4 * sum(len(lane.heads) for lane in self._lanes.values()):
            self._forget_idle_shares()
        key = request.tenant, request.weight
        if (share := self._shares.get(key)) is None:
            share = self._shares[key] = Share(request.weight)
        return lane.add_flow(key, share)

    def _forget_idle_shares(self) -> None:
        """With their flows, or a share that comes back would have two tags."""
        self._shares = {key: share for key, share in self._shares.items() if share.waiting}
        for lane in self._lanes.values():
            lane.flows = {key: flow for key, flow in lane.flows.items() if flow.share.waiting}


def _waits(request: Request) -> bool:
    return request.taken < len(request.items)


def _arrived(request: Request) -> float:
    return request.arrived


def _tag(lane: Lane) -> float:
    flow = lane.front()
    return inf if flow is None else flow.share.tag


def _cut(request: Request, start: int, stop: int, budget: float, must: bool) -> tuple[int, float]:
    """How far into a request a budget reaches, and what that costs; one item at least if it `must`."""
    spent = 0.0
    for place in range(start, stop):
        cost = request.cost(place, place + 1)
        if spent + cost > budget and not (must and place == start):
            return place, spent
        spent += cost
    return stop, spent
