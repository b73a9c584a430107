"""Who travels together where the backend pads all items of a batch to the longest.

A batch then costs as much as its longest item times their number, so items of like length should go together.
Among the first in fair order a window over the sorted lengths is chosen that serves the most, per second of
the device; an item counts for more the longer it has waited, and one that has waited too long must be in the
window, so nothing starves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import inf

from carpool.core.curve import Curve
from carpool.core.request import Request

# Requests that are looked at, for each item that a batch may have; the work for a batch is O(K log K). With
# batches of 64 in simulation: 4 sustains 646 requests/s, 8 sustains 792, 16 sustains 807 for twice the work.
CANDIDATES_PER_ITEM = 8
_AGEING = 0.03  # seconds of waiting that double what an item counts for
_ANCHOR = 0.1  # seconds after which the oldest must travel


def choose(
    now: float, candidates: Sequence[Request], limit: int, budget: float, curve: Curve
) -> list[tuple[Request, int]]:
    """The requests of the best window, each with where its span ends; at least one item.

    A request of several items takes part with as many of its next ones as a batch may hold and cost.
    """
    units = sorted((_unit(request, limit, budget) for request in candidates), key=lambda unit: unit[0])
    widths = [width for width, _, _ in units]
    counts = [0, *accumulate(stop - request.taken for _, request, stop in units)]
    worth = [0.0, *accumulate(_worth(now, request, stop) for _, request, stop in units)]
    oldest = min(range(len(units)), key=lambda place: units[place][1].arrived)
    must = oldest if now - units[oldest][1].arrived > _ANCHOR else None
    best, window = -1.0, (oldest, oldest + 1)
    for last, width in enumerate(widths):
        if must is not None and last < must:
            continue
        for first in _starts(last, counts, limit, budget / width if width else inf):
            if must is not None and first > must:
                break
            cost = width * (counts[last + 1] - counts[first])
            seconds = curve.fixed + curve.per_cost * cost or 1.0  # all alike while nothing is known
            value = (worth[last + 1] - worth[first]) / seconds
            if value > best:
                best, window = value, (first, last + 1)
    return [(request, stop) for _, request, stop in units[window[0] : window[1]]]


def _unit(request: Request, limit: int, budget: float) -> tuple[float, Request, int]:
    """A request as it would travel: its width, itself, and where its span ends; one item at least."""
    start = request.taken
    stop = min(len(request.items), start + limit)
    costs = [1.0] * stop if request.costs is None else request.costs
    width = max(costs[start:stop])
    while stop - start > 1 and width * (stop - start) > budget:
        stop -= 1
        width = max(costs[start:stop])
    return width, request, stop


def _worth(now: float, request: Request, stop: int) -> float:
    return (stop - request.taken) * (1 + (now - request.arrived) / _AGEING)


def _starts(last: int, counts: Sequence[int], limit: int, budget: float) -> list[int]:
    """Where windows that end with `last` may begin, the largest first: all that fits, half of it, and so on."""
    most = min(limit, max(budget, counts[last + 1] - counts[last]))
    first = last
    while first and counts[last + 1] - counts[first - 1] <= most:
        first -= 1
    starts = []
    while first < last:
        starts.append(first)
        first += (last - first + 1) // 2
    return [*starts, last]
