"""Batches that are to be run again: halves in the search for a bad item, and what a replica has lost.

A lost batch goes to another replica where there is one, after a pause that grows and varies so that not all
come back at once. Reruns of lost batches are paid from a budget: when a fifth of what is sent already is
sent again, sending more would only keep a replica down that is about to recover.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from carpool.core.batch import Batch, Part, Search
from carpool.core.isolation import Budget, cut, halves
from carpool.core.request import Request
from carpool.core.spread import spread

_TRIES = 3  # of one batch, the first included
_PAUSE = 0.02  # seconds before the second try; doubled before the third
_SHARE = 0.2  # of all batches may be tried again
_SAVED = 64.0  # batches: as many as are in flight when a replica dies


class Rerun(NamedTuple):
    """What is to be run again at a time, in what search, after how many tries, and rather not where."""

    at: float
    number: int
    parts: list[Part]
    search: Search | None
    tries: int
    avoid: int | None


class Reruns:
    """The batches that are to be run again, soonest first."""

    __slots__ = ("_budget", "_entries", "_pushed")

    def __init__(self) -> None:
        self._entries: list[Rerun] = []  # a heap
        self._pushed = 0
        self._budget = Budget(_SHARE, _SAVED, at_first=_SAVED)

    @property
    def waiting(self) -> bool:
        """Whether there are any."""
        return bool(self._entries)

    def earn(self) -> None:
        """A batch was answered at its first try."""
        self._budget.earn()

    def may_add(self) -> bool:
        """Whether a batch may be run a second time that is not lost; paid from the same budget."""
        return self._budget.spend(1)

    def in_pieces(self, now: float, batch: Batch, search: Search) -> None:
        """Run a batch's halves at once, where it ran. If it may be that everything fails, one item goes first.

        Alone it is likely to be answered, also where so many are bad that every part of the batch has some.
        """
        first, rest = cut(batch.parts, 1) if search.is_doubtful else halves(batch)
        self._push(-inf if search.is_doubtful else now, first, search, batch.tries, None)
        self._push(now, rest, search, batch.tries, None)

    def one_by_one(self, now: float, batch: Batch, search: Search) -> None:
        """Run each item alone: what hangs takes all the time there is in each part that it is in, so in one."""
        rest = batch.parts
        while rest:
            first, rest = cut(rest, 1)
            self._push(now, first, search, batch.tries, None)

    def again(self, now: float, batch: Batch) -> bool:
        """Run a lost batch again in a moment; False if it was tried too often, or too much is."""
        if not live(batch.parts):
            return True
        if batch.tries >= _TRIES or not self._budget.spend(1):
            return False
        jitter = 0.5 + spread(self._pushed)
        at = now + _PAUSE * 2 ** (batch.tries - 1) * jitter
        self._push(at, batch.parts, batch.search, batch.tries + 1, batch.replica)
        return True

    def next(self) -> float:
        """When the first of them is due."""
        entries = self._entries
        while entries and not live(entries[0].parts):
            heapq.heappop(entries)
        return entries[0].at if entries else inf

    def pop(self, now: float, fits: Callable[[Rerun], int]) -> Rerun | None:
        """The first that is due, cut to the items that fit; 0 for one that had better wait."""
        waits: list[Rerun] = []
        found = None
        while found is None and self._entries and self._entries[0].at <= now:
            rerun = heapq.heappop(self._entries)
            parts = live(rerun.parts)
            if not parts:
                continue
            if not (room := fits(rerun)):
                waits.append(rerun)
                continue
            first, rest = cut(parts, room)
            if rest:
                self._push(rerun.at, rest, rerun.search, rerun.tries, rerun.avoid)
            found = rerun._replace(parts=first)
        for rerun in waits:
            heapq.heappush(self._entries, rerun)
        return found

    def requests(self) -> list[Request]:
        """Whose they are."""
        return [request for rerun in self._entries for request, _, _ in rerun.parts]

    def abandon(self, search: Search) -> list[Part]:
        """Give up a search; what was still to be run for it."""
        parts = [part for rerun in self._entries if rerun.search is search for part in rerun.parts]
        self._entries = [rerun for rerun in self._entries if rerun.search is not search]
        heapq.heapify(self._entries)
        return parts

    def drain(self) -> list[Part]:
        """Give up on all of them."""
        parts = [part for rerun in self._entries for part in rerun.parts]
        self._entries.clear()
        return parts

    def _push(self, at: float, parts: list[Part], search: Search | None, tries: int, avoid: int | None) -> None:
        self._pushed += 1
        heapq.heappush(self._entries, Rerun(at, self._pushed, parts, search, tries, avoid))


def live(parts: list[Part]) -> list[Part]:
    """Without those whose callers have had their answer, or have gone."""
    return [part for part in parts if not part[0].ended]
