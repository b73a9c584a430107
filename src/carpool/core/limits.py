"""The bounds of one queue and of the slots behind it."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from carpool.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one queue and its slots; `None` means no bound.

    `max_in_flight` is the number of batches that run at once: the most important number here, since a batch
    that runs before the device has time for it was formed too early, so it alone cannot be `None`.
    `max_queue_size` is in items.
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
        check_count("max_in_flight", self.max_in_flight)
        if self.max_queue_size is not None:
            check_count("max_queue_size", self.max_queue_size)
        for name in ("queue_timeout", "batch_timeout", "patience"):
            check_positive(name, getattr(self, name))


def is_number(value: Any) -> bool:
    """Whether it is one, of whatever library; NaN is not."""
    return isinstance(value, Real) and bool(value == value)


def check_count(name: str, value: Any) -> None:
    """Refuse what is no number of things."""
    if not (isinstance(value, Integral) and int(value) >= 1):
        raise ConfigError(f"{name} {value!r} is out of range", "allowed: whole numbers, 1 and more")


def check_positive(name: str, value: Any) -> None:
    """Refuse what is neither a number more than 0 nor `None`."""
    if not (value is None or (is_number(value) and value > 0)):
        raise ConfigError(f"{name} {value!r} is out of range", "allowed: more than 0, or None")
