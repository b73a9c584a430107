"""From what was seen to figures."""

from __future__ import annotations

from math import nan

import pytest

from carpool.bench import record as record_module
from carpool.bench.record import LOST, UNANSWERED, Record
from carpool.bench.scrape import between, parse
from carpool.bench.summary import Results, complain, histogram, percentile, summarise


def record_of(latencies: list[float], statuses: list[int] | None = None, step: float = 0.01) -> Record:
    record = Record()
    record.restart(100.0)
    for place, latency in enumerate(latencies):
        due = 100.0 + place * step
        record.end(due, due + latency / 1000, statuses[place] if statuses else 200)
    return record


def results_of(record: Record, seconds: float = 10.0) -> Results:
    return summarise(record, seconds, [0.001], 0.5, True, 0.01, {"1": 3, "+Inf": 0}, 1.0)


def test_percentiles_are_values_that_were_seen() -> None:
    """The nearest rank: half of 1 to 100 is 50, and of nothing there is none."""
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 0.999, 1.0)] == [50, 95, 99, 100, 100]
    assert str(percentile([], 0.5)) == "nan"


def test_failures_are_counted_by_name_and_have_no_latency() -> None:
    """A server that refuses quickly must not look fast."""
    statuses = [200, 200, 429, LOST, UNANSWERED, 599]
    results = results_of(record_of([10, 20, 0.1, 0.1, 0.1, 0.1], statuses))
    assert results.latency.max == pytest.approx(20)
    assert results.throughput == pytest.approx(0.2)
    assert results.errors == {"connection lost": 1, "not answered": 1, "429 Too Many Requests": 1, "599": 1}
    assert results.failed == 4


def test_answers_after_the_end_have_a_latency_and_no_part_in_the_throughput() -> None:
    """Else a server that falls behind would be credited with what it catches up."""
    results = results_of(record_of([50.0] * 100 + [20_000.0] * 100), seconds=2.0)
    assert results.throughput == pytest.approx(50)
    assert results.latency.p99 == pytest.approx(20_000)


def test_a_long_run_takes_no_more_memory_than_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An even share is kept, by which the figures are those of all; counts and the longest are exact."""
    monkeypatch.setattr(record_module, "MOST", 3000)
    count = 100_000
    record = record_of(
        [float(1 + place % 32) for place in range(count - 1)] + [5000.0],  # in batches of 32
        [429 if place == 7 else 200 for place in range(count)],
    )
    for _ in range(count):
        record.send(0.001)
    assert max(len(record.due), len(record.ended), len(record.status), len(record.late)) < 3000
    results = results_of(record, seconds=count / 100 + 5)
    assert (results.requests, results.errors) == (count, {"429 Too Many Requests": 1})
    assert results.latency.max == pytest.approx(5000)
    assert (results.latency.p50, results.latency.p95) == pytest.approx((16, 31), abs=1)
    assert results.throughput * results.seconds == pytest.approx(count, rel=0.001)
    assert sum(bucket.answers for bucket in results.histogram) == pytest.approx(count, rel=0.001)
    assert results.over_requests[-1].end == pytest.approx(count, rel=0.02)
    assert results.over_requests[3].rate == pytest.approx(100, rel=0.01)
    assert len(results.over_time) <= 60


def test_windows_cover_the_run_and_every_request_once() -> None:
    """Over time their rates add up to all answers; over requests they end at the last."""
    results = results_of(record_of([5.0] * 990), seconds=10.0)
    width = results.over_time[0].end
    assert sum(window.rate * width for window in results.over_time) == pytest.approx(990)
    assert results.over_time[-1].end == pytest.approx(10.0)
    assert results.over_requests[-1].end == 990
    assert results.over_requests[3].rate == pytest.approx(100, rel=0.01)


def test_a_histogram_has_every_latency_once() -> None:
    """Also the odd zero; its bounds ascend."""
    buckets = histogram([0.0, 1.0, 1.0, 5.0, 700.0])
    assert sum(bucket.answers for bucket in buckets) == 5
    assert [bucket.upto for bucket in buckets] == sorted(bucket.upto for bucket in buckets)
    assert histogram([]) == []


def test_a_run_that_measured_the_generator_is_complained_of() -> None:
    """Late by more than the limit and by more than a tenth of the median, or a core that is used up."""
    assert complain(9.0, 20.0, 1.0, is_open=True, limit=10.0) == ""
    assert "sent 11.0 ms late" in complain(11.0, 20.0, 0.1, is_open=True, limit=10.0)
    assert "seen 11.0 ms late" in complain(11.0, nan, 0.1, is_open=False, limit=10.0)
    assert complain(11.0, 200.0, 0.1, is_open=True, limit=10.0) == ""
    assert "95% of its core" in complain(1.0, 20.0, 0.95, is_open=False, limit=10.0)


def test_batch_sizes_are_those_of_the_run() -> None:
    """What ran before does not count, nor do other metrics; models are added up."""
    page = """
# TYPE carpool_batch_items histogram
carpool_batch_items_bucket{{le="1",model="a"}} {0}
carpool_batch_items_bucket{{le="2",model="a"}} {1}
carpool_batch_items_bucket{{le="+Inf",model="a"}} {1}
carpool_batch_items_count{{model="a"}} {1}
carpool_batch_items_sum{{model="a"}} {2}
carpool_batch_items_bucket{{le="1",model="b"}} 1
carpool_batch_items_bucket{{le="2",model="b"}} 1
carpool_batch_items_bucket{{le="+Inf",model="b"}} 1
carpool_batch_items_count{{model="b"}} 1
carpool_batch_items_sum{{model="b"}} 1
# TYPE other gauge
other 7
"""
    sizes, average = between(parse(page.format(1, 2, 3)), parse(page.format(2, 6, 10)))
    assert sizes == {"1": 1, "2": 3, "+Inf": 0}
    assert average == pytest.approx(7 / 4)
    assert between(None, parse("other 7\n")) == ({}, None)
