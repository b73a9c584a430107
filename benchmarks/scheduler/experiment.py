"""One experiment is a policy, a device and a load; it is run for several seeds, and the means are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf, isnan, nan
from multiprocessing import Pool
from statistics import fmean

from benchmarks.scheduler.bounds import capacity
from benchmarks.scheduler.simulator import ClosedLoop, Device, Workload, simulate
from benchmarks.scheduler.workloads import Source
from carpool.core.limits import Limits
from carpool.core.policy import BatchPolicy
from carpool.core.scheduler import Scheduler

WARM_UP = 0.05  # of the arrivals do not count: the system starts empty, and the scheduler ignorant
PROCESSES = 2


@dataclass(frozen=True)
class Summary:
    """What one run, or the mean of several, measured: seconds, requests per second, items per batch.

    `goodput` counts the answers within the load's deadline, `answered` is the share of requests with one, and
    `p99_longest` is of the tenth of the items that is longest, where items have lengths.
    """

    mean: float
    p50: float
    p99: float
    p99_longest: float
    throughput: float
    goodput: float
    answered: float
    batch_size: float


@dataclass(frozen=True)
class Experiment:
    """What to simulate. `in_flight` bounds the batches at the device, by default to one per slot.

    `watch` names the tenant whose latencies count, if not everyone's do.
    """

    policy: BatchPolicy
    device: Device
    source: Source
    in_flight: int | None = None
    queue_timeout: float | None = None
    max_queue_size: int | None = None
    watch: str = ""

    @property
    def capacity(self) -> float:
        """Requests per second with full batches."""
        return capacity(self.device, self.policy.max_batch_size)

    def run(self, seed: int) -> Summary:
        """Simulate once."""
        limits = Limits(
            max_in_flight=self.in_flight or self.device.slots,
            max_queue_size=self.max_queue_size,
            queue_timeout=self.queue_timeout,
        )
        load = self.source.make(seed)
        outcome = simulate(Scheduler(self.policy, limits), self.device, load, seed)
        since = outcome.arrived[int(len(outcome.arrived) * WARM_UP)]
        longest: list[float] = []
        if isinstance(load, ClosedLoop):
            until, timeout = outcome.last_end, inf
            latencies = outcome.since(since)
        else:
            until, timeout = outcome.arrived[-1], inf if load.timeout is None else load.timeout
            latencies = outcome.since(since, self._watched(load))
            longest = outcome.since(since, _is_long(load))
        answered = _answered(latencies)
        return Summary(
            mean=fmean(answered) if answered else nan,
            p50=percentile(answered, 0.5),
            p99=percentile(answered, 0.99),
            p99_longest=percentile(_answered(longest), 0.99),
            throughput=outcome.rate(since, until),
            goodput=outcome.rate(since, until, timeout),
            answered=len(answered) / len(latencies),
            batch_size=fmean(outcome.batch_sizes),
        )

    def _watched(self, load: Workload) -> list[bool] | None:
        """Whether the latency at each position counts; None if all do."""
        if not self.watch or load.tenants is None:
            return None
        return [tenant == self.watch for tenant in load.tenants]


def _is_long(load: Workload) -> list[bool]:
    """Whether the item at each position is of the longest tenth."""
    if load.lengths is None:
        return [False] * len(load.times)
    shortest = sorted(load.lengths)[len(load.lengths) * 9 // 10]
    return [length >= shortest for length in load.lengths]


def _answered(latencies: Sequence[float]) -> list[float]:
    """Those that are numbers, ascending."""
    return sorted(latency for latency in latencies if not isnan(latency))


def percentile(ascending: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed; `nan` if there are none."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))] if ascending else nan


def measure(experiments: Sequence[Experiment], seeds: Sequence[int]) -> dict[Experiment, Summary]:
    """Run every experiment for every seed, and take the means over the seeds."""
    unique = list(dict.fromkeys(experiments))
    cells = [(experiment, seed) for experiment in unique for seed in seeds]
    with Pool(PROCESSES) as pool:
        summaries = pool.starmap(Experiment.run, cells, chunksize=1)
    count = len(seeds)
    return {
        experiment: _mean(summaries[index * count : (index + 1) * count])
        for index, experiment in enumerate(unique)
    }


def best(experiments: Sequence[Experiment], measured: Mapping[Experiment, Summary]) -> Summary:
    """The summary with the smallest mean latency."""
    return min((measured[experiment] for experiment in experiments), key=lambda summary: summary.mean)


def _mean(summaries: Sequence[Summary]) -> Summary:
    return Summary(*(fmean(getattr(one, field.name) for one in summaries) for field in fields(Summary)))
