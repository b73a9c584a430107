"""Until when requests with a deadline may wait, the most urgent first.

Entries of requests that have left the queue stay until they come to the front, or until most entries are such.
"""

from __future__ import annotations

import heapq
from math import inf

from carpool.core.request import Request

_SPARE_ENTRIES = 64  # of requests that have left, before they are swept


class Deadlines:
    """A heap of waiting requests by `expires`. `earliest` is that of the first, be it that it has left."""

    __slots__ = ("_entries", "_pushed", "_sweep_at", "earliest")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Request]] = []
        self._pushed = 0
        self._sweep_at = _SPARE_ENTRIES
        self.earliest = inf

    def __len__(self) -> int:
        return len(self._entries)

    def watch(self, request: Request) -> None:
        """Remember when a request expires."""
        self._pushed += 1
        heapq.heappush(self._entries, (request.expires, self._pushed, request))
        if request.expires < self.earliest:
            self.earliest = request.expires
        if len(self._entries) > self._sweep_at:
            self._entries = [entry for entry in self._entries if not _has_left(entry[2])]
            heapq.heapify(self._entries)
            self._sweep_at = _SPARE_ENTRIES + 2 * len(self._entries)

    def next(self) -> float:
        """When the first of those that wait expires."""
        entries = self._entries
        while entries and _has_left(entries[0][2]):
            heapq.heappop(entries)
        self.earliest = entries[0][0] if entries else inf
        return self.earliest

    def pop(self, before: float) -> Request | None:
        """The most urgent request that waits, if it expires before or at that time; it is watched no more."""
        if self.next() > before:
            return None
        request = heapq.heappop(self._entries)[2]
        self.earliest = self._entries[0][0] if self._entries else inf
        return request


def _has_left(request: Request) -> bool:
    """Whether a request no longer waits in the queue."""
    waits = request.carrier or request
    return request.ended or request.is_orphan or waits.taken == len(waits.items)
