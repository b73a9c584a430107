"""Finding the bad item in a batch that failed, so that its companions are answered all the same.

A batch that failed on what was in it is split in halves, breadth first, until single items fail: one bad item
in 32 costs ten more calls. It must not make an outage worse: when both halves fail, and both halves of a
half, with nothing answered in between, the backend is down and the rest fails at once; and calls made
for isolation are paid from a budget of a tenth of all calls.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from carpool.core.batch import Batch, Part

_SHARE = 0.1  # of all calls may be made for isolation
_SAVED = 64.0  # calls that may be saved up: several bad items at once, after a quiet time
_AT_FIRST = 12.0  # one bad item in 32, before there was any traffic to save from
_REMEMBERED = 1024  # payloads known to be bad
_REMEMBERED_SECONDS = 60.0  # a backend may be mended meanwhile


class Budget:
    """How many calls may be made for isolation."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls = _AT_FIRST

    def earn(self) -> None:
        """A call was made that was not for isolation."""
        self._calls = min(_SAVED, self._calls + _SHARE)

    def spend(self, calls: int) -> bool:
        """Pay for so many calls, if there is enough."""
        if self._calls < calls:
            return False
        self._calls -= calls
        return True


def halves(batch: Batch) -> tuple[list[Part], list[Part]]:
    """The parts of a batch in two, a request cut where the middle falls into it."""
    left: list[Part] = []
    right: list[Part] = []
    room = len(batch) // 2
    for request, start, stop in batch.parts:
        middle = min(stop, start + room)
        if middle > start:
            left.append(Part(request, start, middle))
        if stop > middle:
            right.append(Part(request, middle, stop))
        room -= middle - start
    return left, right


class Quarantine:
    """Payloads that a search has found to be bad, with their error, for a minute."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, tuple[float, BaseException]] = OrderedDict()

    def add(self, now: float, key: Hashable, error: BaseException) -> None:
        """Remember a payload, and forget the one longest known if there are too many."""
        self._known[key] = (now + _REMEMBERED_SECONDS, error)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def find(self, now: float, key: Hashable) -> BaseException | None:
        """The error of a payload that is known to be bad."""
        if not self._known:
            return None
        until, error = self._known.get(key, (now, None))
        if until <= now:
            self._known.pop(key, None)
            return None
        return error
