"""What arrives: each class describes a load and makes its arrivals from a seed.

The same description and seed always give the same list, whatever the policy, so policies are compared on
identical arrivals. Rates are in requests per second, `count` is the number of requests.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import pairwise
from math import erf, exp, log, sqrt
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Protocol

from benchmarks.scheduler.simulator import ClosedLoop, Workload


class Source(Protocol):
    """Describes a load; hashable, so that results can be looked up by it."""

    def make(self, seed: int) -> Workload | ClosedLoop:
        """The load for one seed."""
        ...


@dataclass(frozen=True)
class Clients:
    """A closed loop."""

    clients: int
    count: int

    def make(self, seed: int) -> ClosedLoop:
        """The same for every seed, which the simulator uses for the jitter."""
        return ClosedLoop(self.clients, self.count)


@dataclass(frozen=True)
class Poisson:
    """Independent arrivals, with a deadline `timeout` seconds after each that the scheduler may be `told`."""

    rate: float
    count: int
    timeout: float | None = None
    told: bool = True

    def make(self, seed: int) -> Workload:
        """Exponential gaps."""
        return Workload(_poisson(self.rate, self.count, seed), timeout=self.timeout, told=self.told)


@dataclass(frozen=True)
class Bursts:
    """A Markov-modulated Poisson process: quiet, and bursts at four times the quiet rate.

    Both states last exponential times. The design's measurements do not say how long; a quarter of the time
    in bursts of 50 ms repeats their latencies within the spread between seeds.
    """

    rate: float
    count: int
    factor: float = 4.0
    burst: float = 0.05
    quiet: float = 0.15

    def make(self, seed: int) -> Workload:
        """Alternate between the states, with Poisson arrivals in each."""
        random = Random(f"bursts {seed}")
        share = self.burst / (self.burst + self.quiet)
        quiet_rate = self.rate / (1 + share * (self.factor - 1))
        times: list[float] = []
        now, is_burst = 0.0, False
        while len(times) < self.count:
            rate = quiet_rate * (self.factor if is_burst else 1)
            end = now + random.expovariate(1 / (self.burst if is_burst else self.quiet))
            now += random.expovariate(rate)
            while now < end:
                times.append(now)
                now += random.expovariate(rate)
            now, is_burst = end, not is_burst
        return Workload(times[: self.count])


@dataclass(frozen=True)
class Replay:
    """The gaps of a recorded trace, stretched to a mean rate and repeated, each seed from another start.

    Without a file the gaps are drawn at random with the trace's coefficient of variation `gap_cv` (from a
    mixture of two exponentials), which keeps the spread of the gaps but not their order.
    """

    rate: float
    count: int
    gap_cv: float
    path: Path | None = None

    def make(self, seed: int) -> Workload:
        """Arrivals at the running sum of the gaps."""
        random = Random(f"replay {seed}")
        if self.path is None:
            gaps = _hyperexponential(self.gap_cv, self.count, random)
        else:
            recorded = _recorded_gaps(self.path)
            first = random.randrange(len(recorded))
            gaps = [recorded[(first + index) % len(recorded)] for index in range(self.count)]
        scale = 1 / (self.rate * fmean(gaps))
        now, times = 0.0, []
        for gap in gaps:
            now += gap * scale
            times.append(now)
        return Workload(times)


@dataclass(frozen=True)
class Texts:
    """Poisson arrivals of texts whose lengths are lognormal, cut at `longest`, with mean `mean` once cut.

    The spread is not in the design's measurements; 1.1 is where first come, first served sustains what they
    report for it, with and without a token budget.
    """

    rate: float
    count: int
    mean: float = 100.0
    longest: int = 512
    sigma: float = 1.1
    told: bool = True

    def make(self, seed: int) -> Workload:
        """Lengths are independent of arrivals."""
        random = Random(f"texts {seed}")
        mu = _location(self.mean, self.longest, self.sigma)
        lengths = [
            max(1, min(self.longest, round(random.lognormvariate(mu, self.sigma)))) for _ in range(self.count)
        ]
        return Workload(_poisson(self.rate, self.count, seed), lengths=lengths, told=self.told)


@dataclass(frozen=True)
class Neighbours:
    """Two tenants with Poisson arrivals: a "light" one and a "hog"."""

    light: float
    hog: float
    count: int
    told: bool = True

    def make(self, seed: int) -> Workload:
        """One stream, each arrival of which is the light tenant's with its share of the probability."""
        random = Random(f"tenants {seed}")
        rate = self.light + self.hog
        tenants = ["light" if random.random() * rate < self.light else "hog" for _ in range(self.count)]
        return Workload(_poisson(rate, self.count, seed), tenants=tenants, told=self.told)


def _poisson(rate: float, count: int, seed: int) -> list[float]:
    random = Random(f"poisson {seed}")
    now, times = 0.0, []
    for _ in range(count):
        now += random.expovariate(rate)
        times.append(now)
    return times


def _hyperexponential(cv: float, count: int, random: Random) -> list[float]:
    """Gaps of mean 1 from a short and a long exponential that take up equal time ("balanced means")."""
    share = (1 + sqrt((cv**2 - 1) / (cv**2 + 1))) / 2
    return [random.expovariate(2 * share if random.random() < share else 2 * (1 - share)) for _ in range(count)]


@cache
def _recorded_gaps(path: Path) -> list[float]:
    """The gaps in seconds between the rows of a gzipped CSV file whose first column is a timestamp."""
    with gzip.open(path, "rt", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        times = sorted(datetime.fromisoformat(row[0][:26]).timestamp() for row in rows)
    return [later - earlier for earlier, later in pairwise(times)]


def _location(mean: float, longest: float, sigma: float) -> float:
    """The mu of a lognormal that has this mean after all that is longer has been cut to `longest`."""

    def cut_mean(mu: float) -> float:
        z = (log(longest) - mu) / sigma
        return exp(mu + sigma**2 / 2) * _normal(z - sigma) + longest * (1 - _normal(z))

    low, high = 0.0, log(longest)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cut_mean(middle) < mean else (low, middle)
    return low


def _normal(z: float) -> float:
    """The cumulative distribution function of the standard normal."""
    return (1 + erf(z / sqrt(2))) / 2
