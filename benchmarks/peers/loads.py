"""A load on one server after the other, and the figures of each round.

All servers run, but only one is awake, as some poll while they have nothing to do. It knows nothing of what is
to be compared, and of no report.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from benchmarks.machine import wait_until_quiet
from benchmarks.peers.cases import BATCH, Case
from benchmarks.peers.servers import Server
from carpool.bench.arrivals import arrivals
from carpool.bench.dialects import Target
from carpool.bench.run import Plan, measure
from carpool.errors import CarpoolError

QUIET_CORES, QUIET_SECONDS = 0.1, 20.0  # a server that still works on what it was sent is waited for, so long
WARM_UP_SECONDS, WARM_UP_USERS = 1.0, BATCH
USERS = 64
MARGIN = 1.03  # medians of a few rounds are not known better than that


@dataclass(frozen=True)
class Round:
    """One load on one server. Without a good answer, latencies and CPU are `nan`."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    failed: float  # of what was sent
    complaint: str  # why the load generator does not believe it
    errors: Mapping[str, int] = field(default_factory=dict)


class Rounds:
    """All rounds of a load on a server: medians, and what was wrong."""

    def __init__(self) -> None:
        self.all: list[Round] = []

    def median(self, value: Callable[[Round], float]) -> float:
        """The median of something in the rounds that have it; `nan` if none has."""
        found = [figure for figure in map(value, self.all) if figure == figure]
        return statistics.median(found) if found else math.nan

    @property
    def complaints(self) -> int:
        """How many of them were not measured well."""
        return sum(bool(one.complaint) for one in self.all)

    @property
    def errors(self) -> Counter[str]:
        """What failed in all of them, by its name."""
        return sum((Counter(one.errors) for one in self.all), Counter())


FIGURES: dict[str, Callable[[Round], float]] = {
    "req/s": lambda one: one.rate,
    "p50": lambda one: one.p50_ms,
    "p99": lambda one: one.p99_ms,
    "CPU per request": lambda one: one.cpu_us,
}


def put(case: Case, server: Server, plan: Plan) -> Round:
    """A load, on a server that has nothing left to do.

    The rate of users is that until the last answer: a slow server answers all of them about at once, and how
    many such waves end within the round is chance.
    """
    target = Target(server.url)
    requests = [target.request(one.body, one.media_type) for one in case.questions(server.dialect)]
    wait_until_quiet(server.cpu_seconds, QUIET_CORES, QUIET_SECONDS)
    measure(target, requests, replace(plan, duration=WARM_UP_SECONDS, users=min(plan.users, WARM_UP_USERS)))
    wait_until_quiet(server.cpu_seconds, QUIET_CORES, QUIET_SECONDS)
    before = server.cpu_seconds()
    results = measure(target, requests, plan)
    cpu = server.cpu_seconds() - before
    good = results.requests - results.failed
    rate = results.throughput if plan.is_open else good / results.until_last
    cpu_us = cpu / good * 1e6 if good else math.nan
    failed = results.failed / max(1, results.requests)
    latency, complaint = results.latency, results.generator.complaint
    return Round(rate, latency.p50, latency.p99, cpu_us, failed, complaint, results.errors)


def due(plan: Plan) -> list[float]:
    """When an open loop sends: seconds from its start."""
    sent = arrivals(plan.arrivals, plan.rate, plan.duration, plan.seed)
    return list(takewhile(lambda moment: moment < plan.duration, sent))


def alternate(
    case: Case, servers: Sequence[Server], plans: Sequence[Plan], others: Sequence[Callable[[Plan], None]] = ()
) -> dict[str, Rounds]:
    """A round of each plan on every server in turn, and on others whose figures are their own matter."""
    rounds = {server.name: Rounds() for server in servers}
    for plan in plans:
        for other in others:
            other(plan)
        for server in servers:
            server.wake()
            try:
                rounds[server.name].all.append(put(case, server, plan))
            except (CarpoolError, OSError) as error:
                print(f"{server.name}: {error}", file=sys.stderr)
                rounds[server.name].all.append(Round(0.0, math.nan, math.nan, math.nan, 1.0, str(error)))
            finally:
                server.sleep()
    return rounds


def ahead(peer: Rounds, ours: Rounds) -> list[str]:
    """The figures in which a peer is better."""
    found = []
    for name, value in FIGURES.items():
        theirs, mine = peer.median(value), ours.median(value)
        ratio = theirs / mine if name == "req/s" else mine / theirs
        if ratio > MARGIN:
            found.append(f"{name} ({theirs:,.4g} against {mine:,.4g})")
    return found
