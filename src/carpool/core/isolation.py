"""Finding the bad item in a batch that failed, so that its companions are answered all the same.

A batch that failed on what was in it is split in halves, breadth first, until single items fail: one bad item
in 32 costs ten more calls. It must not make an outage worse: when both halves fail, both halves of one, and an
item of each of these alone, with nothing answered in between, the backend is down and the rest fails at once.
A batch that took longer than any may is run again item by item at once, since each of its halves could take as
long, and two that hang with nothing answered in between are an outage. And calls made for isolation are paid
from a budget of two for every item that was answered, which is what a search costs to its end.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from carpool.core.batch import Batch, Part

# Calls for isolation, for every item that was answered. Simulated with batches of 32: where 1, 5 and 10 % of
# items are bad, 0, 0.2 and 1 % of the good ones fail with them; with a tenth of all calls 25, 80 and 96 % did.
# A good answer takes 1.5, 4.2 and 6.9 ms of a device that needs 8 + 0.5 b ms, and 8.5 without batches.
_SHARE = 2.0
_SAVED = 256.0  # calls that may be saved up: 25 batches of 32 with a bad item each, after a quiet time
_AT_FIRST = 64.0  # six of those, before there was any traffic to save from
_REMEMBERED = 1024  # payloads known to be bad
_REMEMBERED_SECONDS = 60.0  # a backend may be mended meanwhile


class Budget:
    """How many extra calls may be made: a share of what went well, of which some may be saved up."""

    __slots__ = ("_calls", "_saved", "_share")

    def __init__(self, share: float = _SHARE, saved: float = _SAVED, at_first: float = _AT_FIRST) -> None:
        self._share = share
        self._saved = saved
        self._calls = at_first

    def earn(self, count: int = 1) -> None:
        """So much went well."""
        self._calls = min(self._saved, self._calls + self._share * count)

    def spend(self, calls: int) -> bool:
        """Pay for so many calls, if there is enough."""
        if self._calls < calls:
            return False
        self._calls -= calls
        return True


def halves(batch: Batch) -> tuple[list[Part], list[Part]]:
    """The parts of a batch in two."""
    return cut(batch.parts, len(batch) // 2)


def cut(parts: list[Part], room: int) -> tuple[list[Part], list[Part]]:
    """The parts of the first `room` items, and the others; a request is cut where that falls into it."""
    left: list[Part] = []
    right: list[Part] = []
    for request, start, stop in parts:
        middle = max(start, min(stop, start + room))
        if middle > start:
            left.append((request, start, middle))
        if stop > middle:
            right.append((request, middle, stop))
        room -= middle - start
    return left, right


class Quarantine:
    """Payloads that a search has found to be bad, with their error, for a minute.

    `None` stands for a payload that cannot be recognised.
    """

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: OrderedDict[Hashable, tuple[float, BaseException]] = OrderedDict()

    def add(self, now: float, key: Hashable, error: BaseException) -> None:
        """Remember a payload, and forget the one longest known if there are too many."""
        if key is not None:
            self.known.pop(key, None)  # it is the one known for the shortest time now
            self.known[key] = (now + _REMEMBERED_SECONDS, error)
            if len(self.known) > _REMEMBERED:
                self.known.popitem(last=False)

    def find(self, now: float, key: Hashable) -> BaseException | None:
        """The error of a payload that is known to be bad."""
        while self.known and next(iter(self.known.values()))[0] <= now:
            self.known.popitem(last=False)
        return self.known[key][1] if key in self.known else None
