"""One of the places where batches run, as far as the scheduler knows it."""

from __future__ import annotations

from typing import NamedTuple


class Capacity(NamedTuple):
    """The most that a replica takes; `None` where there is no such limit, or none that it has named."""

    in_flight: int | None = None  # batches at once
    batch_size: int | None = None  # items in a batch
    batch_cost: float | None = None  # what a batch may cost, in the unit in which requests are priced
    items: int | None = None  # in all batches in flight
