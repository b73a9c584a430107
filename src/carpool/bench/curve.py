"""How long a batch of b takes: a line through what was measured, S(b) = a + c·b."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_WORTH_IT = 0.95  # of what endless batches would give: larger ones only make people wait


@dataclass(frozen=True)
class Line:
    """`a` for a batch and `c` for each of its inputs, in milliseconds."""

    a: float
    c: float

    def __call__(self, size: float) -> float:
        """The time of a batch."""
        return self.a + self.c * size

    @property
    def large_enough(self) -> float:
        """The batch size from which more is hardly worth it."""
        return self.a / self.c * _WORTH_IT / (1 - _WORTH_IT) if self.c else float("inf")

    def within(self, milliseconds: float) -> float:
        """The largest batch that takes no longer."""
        return (milliseconds - self.a) / self.c if self.c else float("inf")

    def enough_for(self, rate: float) -> float:
        """The smallest batch size that gives so many inputs a second, if one does."""
        left = 1 - self.c * rate / 1000
        return self.a * rate / 1000 / left if left > 0 else float("inf")


def fit(times: Mapping[int, float]) -> Line:
    """The line with the least squared relative error, so that small batches count as much as large ones."""
    weights = {size: 1 / time**2 for size, time in times.items()}
    total = sum(weights.values())
    mean_size = sum(weights[size] * size for size in times) / total
    mean_time = sum(weights[size] * time for size, time in times.items()) / total
    spread = sum(weight * (size - mean_size) ** 2 for size, weight in weights.items())
    if not spread:
        return Line(mean_time, 0.0)
    together = sum(weights[size] * (size - mean_size) * (time - mean_time) for size, time in times.items())
    c = max(0.0, together / spread)
    return Line(max(0.0, mean_time - c * mean_size), c)
