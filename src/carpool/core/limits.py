"""The bounds of one queue and of the slots behind it."""

from __future__ import annotations

from dataclasses import dataclass

from carpool.errors import ConfigError


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
