"""The queue: requests in order of arrival, handed out item by item.

It counts items, not requests, because items are what fills a batch. Removal is lazy: a request that ended
while it waited no longer counts at once, and its entry is dropped when it reaches the front.
"""

from __future__ import annotations

from collections import deque

from carpool.core.batch import Part
from carpool.core.request import Request


class Queue:
    """First come, first served, with spans: the front request may leave in pieces. `len` counts items."""

    __slots__ = ("_requests", "_waiting")

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def __repr__(self) -> str:
        return f"<Queue: {self._waiting} items waiting>"

    def push(self, request: Request) -> None:
        """Add a request at the back."""
        self._requests.append(request)
        self._waiting += len(request.items)

    def withdraw(self, request: Request) -> None:
        """Stop counting what still waits of a request that has ended."""
        size = len(request.items)
        self._waiting -= size - request.taken
        request.taken = size

    def front(self) -> Request | None:
        """The oldest request that still has an item waiting."""
        requests = self._requests
        while requests:
            request = requests[0]
            if request.taken < len(request.items):
                return request
            requests.popleft()
        return None

    def take(self, limit: int) -> list[Part]:
        """Take out the oldest items, `limit` at most, as spans of their requests."""
        parts = []
        while limit and (request := self.front()) is not None:
            start = request.taken
            stop = min(len(request.items), start + limit)
            request.taken = stop
            parts.append(Part(request, start, stop))
            limit -= stop - start
            self._waiting -= stop - start
        return parts
