"""Counts what happens, for `GET /metrics`. It only listens: nothing here changes what carpool does.

Counting is plain integers, once per batch; prometheus-client writes the exposition format when asked.
Gauges are read from the batchers at that moment, so they cannot drift from the truth.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from carpool.core.scheduler import SchedulerStatistics
from carpool.observe.observer import (
    BatchEnded,
    BatchLeft,
    Fact,
    ReplicaStatus,
    RequestCancelled,
    RequestRefused,
    RequestsEnded,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds: from a fast model's batch of one to the default queue timeout, about 2.5x apart.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)

_RERUNS = frozenset(("hedge", "isolation", "retry"))  # the reasons of batches that have been sent before
_RECENT = 4096  # latencies that the percentiles of the JSON summary are taken over
_RATE_WINDOW = 10.0  # seconds that the request rate of the JSON summary is taken over


class Histogram:
    """Counts of values in buckets, with their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def add_all(self, values: Sequence[float]) -> None:
        """Count many. Those of one batch are most often about the same."""
        if not values:
            return
        counts, bounds = self._counts, self._bounds
        first = bisect_left(bounds, min(values))
        if first == bisect_left(bounds, max(values)):
            counts[first] += len(values)
        else:
            for value in values:
                counts[bisect_left(bounds, value)] += 1
        self.sum += sum(values)

    def cumulative(self) -> list[tuple[str, float]]:
        """The buckets as Prometheus wants them: up to each bound, and up to infinity."""
        names = [*map(str, self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True))


class ModelMetrics:
    """The counts of one model."""

    def __init__(self) -> None:
        # No `Counter`s: to add to one takes several times as long.
        self.requests: defaultdict[str, int] = defaultdict(int)  # by outcome: "ok" or the error's name
        self.batches: defaultdict[str, int] = defaultdict(int)  # by the reason for which they left
        self.failed_batches = 0
        self.replica_batches: defaultdict[tuple[str, str], int] = defaultdict(int)  # by replica and outcome
        self.replica_reruns: defaultdict[tuple[str, str], int] = defaultdict(int)  # by replica and reason
        self.batch_items = Histogram(ITEMS)
        self.queue_seconds = Histogram(SECONDS)
        self.inference_seconds = Histogram(SECONDS)
        self.request_seconds = Histogram(SECONDS)


class Metrics(Collector):
    """An observer that counts, and a Prometheus collector that tells.

    What it does not observe is added to `responses` by whoever responds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._models: dict[str, ModelMetrics] = {}
        self._gauges: dict[str, Callable[[], SchedulerStatistics]] = {}
        self._replicas: dict[str, Callable[[], Sequence[ReplicaStatus]]] = {}
        self.responses: defaultdict[tuple[str, int], int] = defaultdict(int)  # HTTP's, by route and status
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._ended: deque[tuple[float, int]] = deque()  # when, and how many requests ended then
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def watch(
        self,
        model: str,
        statistics: Callable[[], SchedulerStatistics],
        replicas: Callable[[], Sequence[ReplicaStatus]] = tuple,
    ) -> None:
        """Show a model from now on, also before its first request; the callables are asked at each scrape."""
        self._models[model] = ModelMetrics()
        self._gauges[model] = statistics
        self._replicas[model] = replicas

    def forget(self, model: str) -> None:
        """Show a model no more."""
        del self._models[model], self._gauges[model], self._replicas[model]

    def observe(self, fact: Fact) -> None:
        """Count one fact."""
        model = self._models.get(fact.model)
        if model is None:
            model = self._models[fact.model] = ModelMetrics()
        match fact:
            case BatchLeft():
                model.batches[fact.reason] += 1
                if fact.reason in _RERUNS:
                    model.replica_reruns[fact.replica, fact.reason] += 1
                model.batch_items.add(fact.items)
                model.queue_seconds.add(fact.waited)
            case BatchEnded():
                model.inference_seconds.add(fact.seconds)
                outcome = "ok" if fact.error is None else type(fact.error).__name__
                model.replica_batches[fact.replica, outcome] += 1
                model.failed_batches += fact.error is not None
            case RequestsEnded():
                self._count_ended(model, fact)
            case RequestCancelled():
                model.requests["Cancelled"] += 1
            case RequestRefused():
                model.requests[type(fact.error).__name__] += 1

    def prometheus(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def summary(self) -> dict[str, float]:
        """The JSON summary over all models; times in seconds."""
        models = self._models.values()
        batches = sum(model.batch_items.count for model in models)
        finished = sum(model.inference_seconds.count for model in models)
        now = self._clock()
        self._forget_before(now - _RATE_WINDOW)
        window = min(_RATE_WINDOW, now - self._started) or 1.0
        latencies = sorted(self._recent)
        return {
            "total_requests": sum(sum(model.requests.values()) for model in models),
            "total_batches": batches,
            "avg_batch_size": _ratio(sum(model.batch_items.sum for model in models), batches),
            "avg_inference_time": _ratio(sum(model.inference_seconds.sum for model in models), finished),
            "p50_latency": _quantile(latencies, 0.50),
            "p95_latency": _quantile(latencies, 0.95),
            "rps_approx": round(sum(count for _, count in self._ended) / window, 3),
        }

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client asks for."""
        yield from _counters(self._models)
        yield from _histograms(self._models)
        responses = CounterMetricFamily("carpool_http_responses", "HTTP responses.", labels=("route", "status"))
        for (route, status), count in sorted(self.responses.items()):
            responses.add_metric((route, str(status)), count)
        yield responses
        yield from self._read_gauges()
        yield from self._read_replicas()

    def _read_gauges(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily("carpool_queue_items", "Items waiting in the queue.", labels=("model",))
        running = GaugeMetricFamily("carpool_batches_in_flight", "Batches running.", labels=("model",))
        slots = GaugeMetricFamily("carpool_slots", "Batches that may run at once.", labels=("model",))
        for name, read in self._gauges.items():
            statistics = read()
            waiting.add_metric((name,), statistics.waiting)
            running.add_metric((name,), statistics.in_flight)
            slots.add_metric((name,), statistics.slots)
        return waiting, running, slots

    def _read_replicas(self) -> Iterable[Metric]:
        """One by one, the replicas that are there now: what was counted of one that has left goes with it."""
        labels = ("model", "replica")
        running = GaugeMetricFamily("carpool_replica_batches_in_flight", "Batches running.", labels=labels)
        up = GaugeMetricFamily("carpool_replica_up", "Whether batches are sent to it.", labels=labels)
        batches = CounterMetricFamily(
            "carpool_replica_batches", "Batches by outcome: ok, or the error.", labels=(*labels, "outcome")
        )
        reruns = CounterMetricFamily(
            "carpool_replica_reruns",
            "Batches that had been sent before: retry, hedge or isolation.",
            labels=(*labels, "reason"),
        )
        for name, read in self._replicas.items():
            in_flight: Counter[str] = Counter()
            is_up: Counter[str] = Counter()
            for replica in read():  # one may come back while its former self still finishes: both are one
                in_flight[replica.name] += replica.in_flight
                is_up[replica.name] |= replica.is_up
            for replica_name, count in in_flight.items():
                running.add_metric((name, replica_name), count)
                up.add_metric((name, replica_name), is_up[replica_name])
            model = self._models[name]
            for family, counts in ((batches, model.replica_batches), (reruns, model.replica_reruns)):
                for key in [key for key in counts if key[0] not in in_flight]:
                    del counts[key]
                for key, count in sorted(counts.items()):
                    family.add_metric((name, *key), count)
        return running, up, batches, reruns

    def _count_ended(self, model: ModelMetrics, fact: RequestsEnded) -> None:
        model.requests["ok"] += len(fact.latencies)
        for error in fact.errors:
            model.requests[type(error).__name__] += 1
        model.request_seconds.add_all(fact.latencies)
        self._recent.extend(fact.latencies)
        now = self._clock()
        self._forget_before(now - _RATE_WINDOW)
        self._ended.append((now, len(fact.latencies) + len(fact.errors)))

    def _forget_before(self, moment: float) -> None:
        while self._ended and self._ended[0][0] < moment:
            self._ended.popleft()


def _counters(models: Mapping[str, ModelMetrics]) -> Iterable[Metric]:
    requests = CounterMetricFamily(
        "carpool_requests", "Requests by outcome: ok, Cancelled, or the error.", labels=("model", "outcome")
    )
    batches = CounterMetricFamily(
        "carpool_batches", "Batches by the reason for which they left.", labels=("model", "reason")
    )
    failed = CounterMetricFamily("carpool_batches_failed", "Batches that failed whole.", labels=("model",))
    for name, model in models.items():
        for outcome, count in sorted(model.requests.items()):
            requests.add_metric((name, outcome), count)
        for reason, count in sorted(model.batches.items()):
            batches.add_metric((name, reason), count)
        failed.add_metric((name,), model.failed_batches)
    return requests, batches, failed


def _histograms(models: Mapping[str, ModelMetrics]) -> Iterator[Metric]:
    kinds: list[tuple[str, str, Callable[[ModelMetrics], Histogram]]] = [
        ("carpool_batch_items", "Items per batch.", lambda model: model.batch_items),
        ("carpool_queue_seconds", "Wait of a batch's oldest request.", lambda model: model.queue_seconds),
        ("carpool_inference_seconds", "Time a batch ran.", lambda model: model.inference_seconds),
        ("carpool_request_seconds", "From arrival to result.", lambda model: model.request_seconds),
    ]
    for name, help_text, pick in kinds:
        family = HistogramMetricFamily(name, help_text, labels=("model",))
        for model, metrics in models.items():
            histogram = pick(metrics)
            family.add_metric((model,), histogram.cumulative(), histogram.sum)
        yield family


def _ratio(total: float, count: int) -> float:
    return round(total / count, 6) if count else 0.0


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    return round(ordered[int(fraction * (len(ordered) - 1))], 6) if ordered else 0.0
