"""A batch: the items that leave together, and whose they are."""

from __future__ import annotations

from typing import Any

from carpool.core.request import Request

# Failures without a success: both halves and a half of one make it doubtful that items are to blame. It is an
# outage when the other half has failed as well, and an item of each alone.
_DOUBT, _OUTAGE = 3, 6
_HANG = 3  # failures for which one counts that took all the time that a batch may take: two are an outage


# The span `start:stop` of a request's items that travels in one batch: (request, start, stop). A plain tuple:
# there is one for each request of each batch, and a named one takes eight times as long to make.
Part = tuple[Request, int, int]


class Search:
    """The search for the bad items of a batch that failed; `isolation.py` says how it goes."""

    __slots__ = ("bore", "failures", "largest", "successes")

    def __init__(self) -> None:
        self.failures = 0  # on what was in a batch; one that was too large says nothing of an outage
        self.successes = 0
        self.largest = 1  # items that have succeeded in one batch
        self.bore: dict[int, float] = {}  # what replicas, by number, bore before they complained of a size

    def failed(self, hung: bool) -> None:
        """A step of it failed."""
        self.failures += _HANG if hung else 1

    @property
    def is_doubtful(self) -> bool:
        """Whether it may be that everything fails."""
        return not self.successes and self.failures >= _DOUBT

    @property
    def is_outage(self) -> bool:
        """Whether everything fails, so that no item is to blame."""
        return not self.successes and self.failures >= _OUTAGE


class Batch:
    """Items of one or many requests on their way to the backend, in the order of `parts`."""

    __slots__ = (
        "cost",
        "expected_at",
        "group",
        "is_settled",
        "items",
        "number",
        "parts",
        "reason",
        "replica",
        "search",
        "taken_at",
        "tries",
        "twin",
    )

    def __init__(
        self,
        number: int,
        parts: list[Part],
        taken_at: float,
        reason: str,
        search: Search | None = None,
        replica: int = 0,
        tries: int = 1,
    ) -> None:
        self.number = number
        self.parts = parts
        self.taken_at = taken_at
        self.reason = reason  # why it left now, in words for the log and a label for the metrics
        self.search = search  # the search for a bad item that it is a step of
        self.replica = replica  # where it runs
        self.tries = tries  # this one included
        self.twin: Batch | None = None  # runs the same elsewhere; whichever is back first answers
        self.is_settled = False  # by its twin: what it returns is of no use any more
        items: list[Any] = []
        for request, start, stop in parts:
            if stop - start == 1:
                items.append(request.items[start])
            else:
                items += request.items[start:stop]
        self.items = items
        self.group = parts[0][0].group  # which all of its requests have in common
        self.cost = 0.0  # as the scheduler prices it, which sets this
        self.expected_at = 0.0  # when the scheduler expects it back

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"<Batch {self.number}: {len(self)} items of {len(self.parts)} requests, {self.reason}>"

    @property
    def longest_wait(self) -> float:
        """How long its oldest request had waited when it left, in seconds."""
        return self.taken_at - min([request.arrived for request, _, _ in self.parts])
