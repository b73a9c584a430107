"""From a record to figures: percentiles, how they went over time, and whether they may be believed.

Latencies are in milliseconds, of good answers only; what failed is counted beside them. It does no I/O.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import compress, pairwise
from math import ceil, log, nan
from typing import NamedTuple

from carpool.bench.record import LOST, UNANSWERED, Record

# Points of a curve: as many as a picture shows well, and fewer where each would stand for few requests. Answers
# come in batches, so a window that is not larger than a few of them shows the batches and not the server.
_FEWEST_WINDOWS, _MOST_WINDOWS = 6, 60
_WINDOW_REQUESTS = 100
_BUCKET = 1.08  # the ratio of two bounds of the histogram: 30 buckets from 10 to 100 ms
# A run counts if 99 requests of 100 were sent within a given time of when they were due, or this share of
# the median latency where that is longer: less cannot change what a picture shows.
LATE_SHARE = 0.1
BUSY_SHARE = 0.9  # of its core: a closed loop that needs more is itself what limits the throughput


@dataclass(frozen=True)
class Latency:
    """Percentiles, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


class Window(NamedTuple):
    """A part of a run: `end` is in seconds from its start, or in answers."""

    end: float
    rate: float
    errors: float  # a second
    p50: float
    p95: float
    p99: float


class Bucket(NamedTuple):
    """How many latencies there were up to `upto` milliseconds, above the bucket before."""

    upto: float
    answers: int


@dataclass(frozen=True)
class Generator:
    """What the load generator says of itself. In a closed loop its lateness is that of its event loop."""

    late_p50_ms: float
    late_p99_ms: float
    cpu_share: float
    complaint: str  # why the run cannot be believed; empty if it can


@dataclass(frozen=True)
class Results:
    """One run."""

    requests: int
    seconds: float
    throughput: float  # good answers a second
    until_last: float  # seconds from the start to the last answer, which may be after the end
    errors: Mapping[str, int]
    latency: Latency
    generator: Generator
    over_time: Sequence[Window]
    over_requests: Sequence[Window]
    histogram: Sequence[Bucket]
    batch_sizes: Mapping[str, int]  # by the upper bound of the bucket; empty where the server does not tell
    average_batch: float | None

    @property
    def failed(self) -> int:
        """Requests without a good answer."""
        return sum(self.errors.values())


def summarise(
    record: Record,
    seconds: float,
    late: Sequence[float],
    cpu_share: float,
    is_open: bool,
    late_limit: float,
    batch_sizes: Mapping[str, int],
    average_batch: float | None,
) -> Results:
    """The figures of a run that counted for so many seconds."""
    outcomes = array("d", map(_outcome, record.due, record.ended, record.status))
    counts = [due >= record.since for due in record.due]
    latencies = good(compress(outcomes, counts))
    latency = replace(describe(latencies), max=record.longest * 1000 if latencies else nan)
    late_p50, late_p99 = (percentile(sorted(late) or [0.0], share) * 1000 for share in (0.5, 0.99))
    complaint = complain(late_p99, latency.p50, cpu_share, is_open, late_limit * 1000)
    over_time = _over_time(record, outcomes, seconds)
    return Results(
        requests=record.requests,
        seconds=seconds,
        throughput=sum(window.rate for window in over_time) / len(over_time),
        until_last=record.ended[-1] - record.since if record.ended else nan,
        errors=count_errors(record.errors),
        latency=latency,
        generator=Generator(late_p50, late_p99, cpu_share, complaint),
        over_time=over_time,
        over_requests=_over_requests(record, outcomes),
        histogram=histogram(latencies, record.every),
        batch_sizes=batch_sizes,
        average_batch=average_batch,
    )


def _outcome(due: float, ended: float, status: int) -> float:
    """The latency in milliseconds; `nan` if it failed."""
    return (ended - due) * 1000 if 200 <= status < 300 else nan


def good(outcomes: Iterable[float]) -> list[float]:
    """The latencies that there are, ascending."""
    return sorted(latency for latency in outcomes if latency == latency)


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed; `nan` if there are none."""
    return ascending[max(0, ceil(len(ascending) * share) - 1)] if ascending else nan


def describe(ascending: Sequence[float]) -> Latency:
    """The percentiles."""
    mean = sum(ascending) / len(ascending) if ascending else nan
    return Latency(mean, *(percentile(ascending, share) for share in (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)))


def count_errors(statuses: Mapping[int, int]) -> dict[str, int]:
    """What failed, by its name."""
    return {_name(status): count for status, count in sorted(statuses.items()) if count}


def _name(status: int) -> str:
    if status in (LOST, UNANSWERED):
        return "connection lost" if status == LOST else "not answered"
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def complain(late_p99: float, p50: float, cpu_share: float, is_open: bool, limit: float) -> str:
    """Why the run measured the load generator and not the server; empty if it did not."""
    allowed = max(limit, LATE_SHARE * p50 if p50 == p50 else 0.0)
    if late_p99 > allowed:
        what = "requests were sent" if is_open else "answers were seen"
        return f"{what} {late_p99:.1f} ms late (p99), where {allowed:.1f} ms are allowed"
    if not is_open and cpu_share > BUSY_SHARE:
        return f"the load generator used {cpu_share:.0%} of its core"
    return ""


def histogram(ascending: Sequence[float], each: int = 1) -> list[Bucket]:
    """Counts in buckets that grow by a constant ratio, without the empty ends. Each stands for so many."""
    places = Counter(ceil(log(max(value, 1e-3)) / log(_BUCKET)) for value in ascending)
    if not places:
        return []
    return [Bucket(_BUCKET**place, places[place] * each) for place in range(min(places), max(places) + 1)]


def _windows(requests: int) -> int:
    return max(_FEWEST_WINDOWS, min(_MOST_WINDOWS, requests // _WINDOW_REQUESTS))


def _over_time(record: Record, outcomes: array[float], seconds: float) -> list[Window]:
    """Equal parts of the time, by when requests ended."""
    count = _windows(len(outcomes))
    width = seconds / count
    ends = [width * (place + 1) for place in range(count)]
    cuts = [0, *(bisect_right(record.ended, record.since + end) for end in ends)]
    return [
        _window(outcomes[first:last], end, width / record.every)
        for (first, last), end in zip(pairwise(cuts), ends, strict=True)
    ]


def _over_requests(record: Record, outcomes: array[float]) -> list[Window]:
    """Equal parts of the requests, in the order in which they ended."""
    size = max(1, len(outcomes) // _windows(len(outcomes)))
    windows, start = [], record.since
    for last in range(size, len(outcomes) + 1, size):
        end = record.ended[last - 1]
        seconds = max(end - start, 1e-9)
        windows.append(_window(outcomes[last - size : last], last * record.every, seconds / record.every))
        start = end
    return windows


def _window(outcomes: array[float], end: float, width: float) -> Window:
    latencies = good(outcomes)
    return Window(
        end,
        len(latencies) / width,
        (len(outcomes) - len(latencies)) / width,
        *(percentile(latencies, share) for share in (0.5, 0.95, 0.99)),
    )
