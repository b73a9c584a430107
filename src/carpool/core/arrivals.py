"""What arrives: how fast, and whether those who have just been answered come straight back.

Clients in a closed loop (most load tools, and any program that waits for one answer before it asks for the
next) return within a moment of their batch's end. Whoever does not wait for them splits them into cohorts
that take turns, which costs up to 40 % of the throughput.
"""

from __future__ import annotations

from math import inf

_RATE_STEP = 0.05
_SETTLED = 20  # arrivals, 1 / _RATE_STEP, until which the plain mean of the gaps is taken
_LONGEST_GAP = 1.0  # seconds; a night without requests must not be remembered into the morning
_PEAK_OF = 256  # arrivals, and as many before them
_RETURN_STEP = 0.1
_DELAY_STEP = 0.2


class Arrivals:
    """The arrival rate in items per second, and the habits of returning clients."""

    __slots__ = (
        "_count",
        "_doubt",
        "_ended_at",
        "_ended_items",
        "_gap",
        "_last",
        "_last_return",
        "_peak",
        "_peak_before",
        "_returned",
        "_share",
        "_window",
        "return_delay",
    )

    def __init__(self) -> None:
        self._count = 0
        self._gap = 0.0
        self._last = -inf
        self._share = 0.0  # of a batch's items that were followed by an arrival within the window
        self._doubt = 0.5  # how much that share varies
        self._peak = 0
        self._peak_before = 0
        self.return_delay = 0.0  # seconds from a batch's end to the last of them
        self._ended_at = -inf
        self._ended_items = 0
        self._window = 0.0
        self._returned = 0
        self._last_return = 0.0

    @property
    def rate(self) -> float:
        """Items per second."""
        return 1 / self._gap if self._gap > 0 else 0.0

    @property
    def surely_returning(self) -> float:
        """The share of a batch's items that can be counted on to be followed by another."""
        return self._share - self._doubt

    @property
    def peak(self) -> int:
        """The most items that were here at once, of late: as many as the clients in a closed loop."""
        return max(self._peak, self._peak_before)

    def arrived(self, now: float, items: int, here: int) -> None:
        """A request of so many items has come, and with it so many wait or are in flight."""
        count = self._count
        self._count = count + 1
        if here > self._peak:
            self._peak = here
        if not count % _PEAK_OF:
            self._peak_before, self._peak = self._peak, here
        if now == self._last:  # most of a busy server's requests come with others: there is no gap
            self._gap -= _RATE_STEP * self._gap if count > _SETTLED else self._gap / count
        else:
            if count:
                gap = min(_LONGEST_GAP, now - self._last) / items
                self._gap += (_RATE_STEP if count > _SETTLED else 1 / count) * (gap - self._gap)
            self._last = now
        ago = now - self._ended_at
        if ago <= self._window:
            self._returned += items
            self._last_return = ago

    def batch_ended(self, now: float, items: int, window: float) -> None:
        """A batch is back; who arrives within `window` seconds from now counts as returning."""
        expected = self._ended_items
        if expected and (now - self._ended_at >= self._window or self._returned >= expected):
            share = min(1.0, self._returned / expected)
            self._share += _RETURN_STEP * (share - self._share)
            self._doubt += _RETURN_STEP * (abs(share - self._share) - self._doubt)
            if self._returned:
                self.return_delay += _DELAY_STEP * (self._last_return - self.return_delay)
        self._ended_at = now
        self._ended_items = items
        self._returned = 0
        self._window = window

    def still_expected(self, now: float) -> tuple[float, float]:
        """How many items are expected to return yet, and how many seconds that may take."""
        items = self.surely_returning * self._ended_items - self._returned
        patience = min(self._window, 1.25 * self.return_delay)  # 1.25: the last of them varies
        return items, patience - (now - self._ended_at)
