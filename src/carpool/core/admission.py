"""What may be in the house at a time, how long it may stay, and when who is refused should come back."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from carpool.errors import ConfigError

SAFETY = 1.5  # times the predicted time to an answer must fit before a deadline, or it is not taken in
_LONGEST = 30.0  # seconds that anybody is told to stay away
_SHARE = 0.2  # of the capacity is kept for those who come back
_JITTER = 0.2
_GOLDEN = 0.618034  # its multiples modulo 1 spread evenly, in any number and without randomness


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one queue and its slots; `None` means no bound.

    `max_in_flight` is the number of batches that run at once: the most important number here, since a batch
    that runs before the device has time for it was formed too early. `max_queue_size` is in items.
    `queue_timeout` (seconds) is how long a request may wait before it is refused unrun, `batch_timeout`
    (seconds) how long the backend may take over one batch. `patience` (seconds) is for how long what waits
    outlives the last replica: a restart, or a moment without network.
    """

    max_in_flight: int = 1
    max_queue_size: int | None = None
    queue_timeout: float | None = None
    batch_timeout: float | None = None
    patience: float | None = 2.0

    def __post_init__(self) -> None:
        for name in ("max_in_flight", "max_queue_size", "queue_timeout", "batch_timeout", "patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} {value} is out of range", "allowed: more than 0")


class ComeBack:
    """Gives each refused caller a time of its own to come back, so that they do not all return at once.

    Times are handed out one after the other, at the pace of a fifth of the capacity, from when the queue will
    have emptied; a fixed answer would only move the burst.
    """

    __slots__ = ("_handed_out", "_last")

    def __init__(self) -> None:
        self._last = 0.0
        self._handed_out = 0

    def seconds(self, now: float, wait: float, capacity: float) -> int:
        """Whole seconds for `Retry-After`: `wait` until the queue is empty, `capacity` in items a second."""
        pace = 1 / (_SHARE * capacity) if capacity > 0 else 0.0
        self._last = min(max(now + wait, self._last) + pace, now + _LONGEST)
        self._handed_out += 1
        jitter = 1 + _JITTER * (2 * (self._handed_out * _GOLDEN % 1) - 1)
        return max(1, min(int(_LONGEST), ceil((self._last - now) * jitter)))
